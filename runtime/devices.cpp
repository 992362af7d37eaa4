// What a build can compute on and what this machine is and can do, for people: names of devices, facts, measured
// limits; and the names of reasons to end.
#include <algorithm>

#include "infer.h"
#include "kernels/backend.h"
#include "kernels/build.h"
#include "kernels/cpu/bandwidth.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/limits.h"
#include "runtime/memory.h"

namespace infer {
namespace {

std::string numbered(const BackendRow& row, int index) {
  return row.name + (index > 0 ? ":" + std::to_string(index) : std::string());
}

}  // namespace

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
  for (const BackendRow& row : backends()) {
    if (!row.devices) out.push_back(std::string(row.name) + ": " + row.summary);
    for (int i = 0; row.devices && i < row.devices->count(); ++i)
      if (row.devices->unusable_reason(i).empty())
        out.push_back(numbered(row, i) + ": " + row.devices->describe(i) + "; " + row.summary);
  }
  return out;
}

std::vector<std::string> list_unusable_devices() {
  std::vector<std::string> out;
  for (const BackendRow& row : backends()) {
    // Where there is none, the reason is that of the first.
    for (int i = 0; row.devices && i < std::max(1, row.devices->count()); ++i)
      if (const std::string reason = row.devices->unusable_reason(i); !reason.empty())
        out.push_back(numbered(row, i) + ": " + reason);
  }
  return out;
}

double measure_read_bandwidth(int n_threads, double seconds) { return cpu::read_bandwidth_gbps(n_threads, seconds); }

double measure_int8_peak(int n_threads, double seconds) { return cpu::int8_peak_gops(n_threads, seconds); }

double measure_gpu_read_bandwidth() {
  static const double measured = cuda::read_bandwidth_gbps();
  return measured;
}

double measure_gpu_tensor_peak() {
  static const double measured = cuda::tensor_peak_tflops();
  return measured;
}

std::vector<GpuInfo> list_gpus(bool with_memory) {
  std::vector<GpuInfo> out;
  for (const cuda::DeviceFacts& f : cuda::device_facts(with_memory))
    out.push_back({f.index, f.name, f.unusable, f.pci_bus_id, f.major, f.minor, f.n_sms, f.driver_version,
                   f.runtime_version, f.total_bytes, f.free_bytes});
  return out;
}

GpuCopySpeeds measure_gpu_copies(int index) {
  const cuda::CopySpeeds s = cuda::copy_speeds(index);
  return {s.pinned_to_device, s.pinned_from_device, s.pageable_to_device, s.pageable_from_device, s.on_device};
}

HostInfo host_info() {
  return {cpu::to_string(cpu::best_isa()), cpu::default_threads(), available_memory(), build_kind()};
}

}  // namespace infer
