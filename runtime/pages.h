// Gives the memory behind tensors back to the system once it is of no more use.
#pragma once

#include <cstddef>

namespace infer {

/// Pages of a mapped file. The kernel reads them again should anybody want them; until then they do not count as this
/// process's memory.
void drop_file_pages(const std::byte* data, size_t bytes);

/// Whole pages of a buffer that nobody will read before it is freed: their contents are lost.
void drop_buffer_pages(const std::byte* data, size_t bytes);

}  // namespace infer
