// Rows of a file from which others are made.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/make_rows.h"

namespace infer {

/// Rows [first, end) of equal length that lie at `data`, brought so many at a time that they are still in the cache
/// when they are used.
class RowReader {
 public:
  RowReader(const std::byte* data, int64_t row_bytes, int64_t first, int64_t end, const ReadBytes& read)
      : data_(data), row_bytes_(row_bytes), begin_(first), next_(first), end_(end), read_(read) {}
  /// Valid until the next call. Rows are asked for in ascending order.
  const std::byte* row(int64_t i) {
    if (i >= next_) {
      begin_ = i;
      next_ = std::min(end_, i + std::max(kBytes / std::max(row_bytes_, int64_t{1}), int64_t{1}));
      some_.resize(static_cast<size_t>((next_ - begin_) * row_bytes_));
      copy_bytes(read_, data_ + begin_ * row_bytes_, some_.size(), some_.data());
    }
    return some_.data() + (i - begin_) * row_bytes_;
  }

 private:
  static constexpr int64_t kBytes = 1 << 18;
  const std::byte* data_;
  int64_t row_bytes_, begin_, next_, end_;
  const ReadBytes& read_;
  std::vector<std::byte> some_;
};

}  // namespace infer
