// Weights that lie nowhere yet: how their rows come to be, and the bytes that they are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>

namespace infer {

/// Writes rows [first, first + n) of a tensor one after another, rows being counted over all dimensions but the last.
/// May be called by several threads at once.
using MakeRows = std::function<void(int64_t first, int64_t n, std::byte* to)>;

/// Copies bytes that lie at `from` in a mapped file without mapping its pages; false where there is another way only.
/// Thread-safe; may be empty.
using ReadBytes = std::function<bool(const std::byte* from, std::span<std::byte> to)>;

inline void copy_bytes(const ReadBytes& read, const std::byte* from, size_t bytes, std::byte* to) {
  if (!read || !read(from, {to, bytes})) std::memcpy(to, from, bytes);
}

}  // namespace infer
