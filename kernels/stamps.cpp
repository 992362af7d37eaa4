// What profilers get from a backend that computes on the host: its clock, and the size of the processor's last cache.
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "kernels/backend.h"

namespace infer {

uint64_t Backend::stamp() {
  wait();
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

double Backend::seconds_between(uint64_t first, uint64_t second) {
  return static_cast<double>(static_cast<int64_t>(second - first)) * 1e-9;
}

size_t Backend::cache_bytes() const {
  long bytes = 0;  // what the C library does not know is 0 or -1
  for (const int level : {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE}) bytes = std::max(bytes, sysconf(level));
  return static_cast<size_t>(bytes);
}

}  // namespace infer
