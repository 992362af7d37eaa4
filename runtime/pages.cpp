// See pages.h.
#include "runtime/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace infer {
namespace {

uintptr_t page_size() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

void drop(uintptr_t begin, uintptr_t end) {
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

void drop_file_pages(const std::byte* data, size_t bytes) {
  const uintptr_t page = page_size(), begin = reinterpret_cast<uintptr_t>(data);
  drop(begin / page * page, (begin + bytes + page - 1) / page * page);
}

void drop_buffer_pages(const std::byte* data, size_t bytes) {
  const uintptr_t page = page_size(), begin = reinterpret_cast<uintptr_t>(data);
  drop((begin + page - 1) / page * page, (begin + bytes) / page * page);
}

}  // namespace infer
