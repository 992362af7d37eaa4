// Anonymous mappings.
#include "kernels/cpu/memory.h"

#include <cstdint>
#include <string>

#include <sys/mman.h>

#include "infer/error.h"

namespace infer::cpu {

std::shared_ptr<void> map_memory(size_t bytes, const std::shared_ptr<std::atomic<int64_t>>& live) {
  constexpr size_t kHuge = size_t{2} << 20;
  const bool huge = bytes >= 2 * kHuge;
  const size_t length = bytes + (huge ? kHuge : 1);  // room to align; a mapping of nothing is an error
  void* base = MAP_FAILED;
  if (length > bytes) {
    base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (base == MAP_FAILED) {
    throw Error(ErrorKind::does_not_fit, "memory", "the system gives no more", std::to_string(bytes) + " bytes wanted");
  }
  char* start = static_cast<char*>(base);
  if (huge) {
    start += (kHuge - reinterpret_cast<uintptr_t>(base) % kHuge) % kHuge;
    madvise(start, bytes, MADV_HUGEPAGE);  // a wish; without it the memory works as well
  }
  live->fetch_add(static_cast<int64_t>(bytes));
  auto release = [base, length, bytes, live](void*) {
    munmap(base, length);
    live->fetch_sub(static_cast<int64_t>(bytes));
  };
  return std::shared_ptr<void>(start, release);  // calls release if it cannot allocate its own block
}

}  // namespace infer::cpu
