// What a build can compute on and what this machine can do, for people: names of devices, measured limits; and the names
// of reasons to end.
#include "infer.h"
#include "kernels/backend.h"
#include "kernels/cpu/bandwidth.h"

namespace infer {

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::context:
      return "context";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "unknown";
}

std::vector<std::string> list_devices() {
  std::vector<std::string> out;
  for (const BackendRow& row : backends()) out.push_back(std::string(row.name) + ": " + row.summary);
  return out;
}

double measure_read_bandwidth(int n_threads, double seconds) { return cpu::read_bandwidth_gbps(n_threads, seconds); }

double measure_int8_peak(int n_threads, double seconds) { return cpu::int8_peak_gops(n_threads, seconds); }

}  // namespace infer
