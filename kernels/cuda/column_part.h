// Some columns of a matrix whose codes lie by columns (kernels/column_codes.h), as they are brought to the device:
// words of codes, then zero points, then scales of the groups that they are in. Plain C++: sizes and places, for both
// sides.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/column_codes.h"
#include "quant/format.h"

namespace infer::cuda {

struct ColumnPart {
  int64_t rows = 0, n_zero_words = 0;     ///< of the matrix; words of zero points to a scale's group, or 0
  int64_t first_group = 0, n_groups = 0;  ///< of kGroup columns
  int64_t first_scale = 0, n_scales = 0;  ///< groups of group_cols columns
  int64_t groups_to_scale = 1;
  int bits = 4, zero_bias = 0;
  INFER_HD int64_t code_bytes() const { return n_groups * kGroup * rows * bits / 8; }
  INFER_HD int64_t zeros_at() const { return code_bytes(); }  // a multiple of 16
  INFER_HD int64_t scales_at() const { return zeros_at() + n_scales * n_zero_words * 4; }
  int64_t bytes() const { return scales_at() + n_scales * rows * 2; }
};

/// The groups from `first_group` on that there is room for, none if not even one fits.
inline ColumnPart column_part(const ColumnCodes& columns, int64_t first_group, int64_t room) {
  ColumnPart part;
  part.rows = columns.rows;
  part.n_zero_words = columns.zeros ? columns.zero_words() : 0;
  part.bits = columns.bits, part.zero_bias = columns.zero_bias;
  part.groups_to_scale = columns.group_cols / kGroup;
  part.first_group = first_group;
  part.first_scale = first_group / part.groups_to_scale;
  for (int64_t n = std::min(columns.cols / kGroup - first_group, room / (4 * columns.rows * columns.bits)); n > 0;
       --n) {
    part.n_groups = n;
    part.n_scales = (first_group + n - 1) / part.groups_to_scale - part.first_scale + 1;
    if (part.bytes() <= room) return part;
  }
  part.n_groups = part.n_scales = 0;
  return part;
}

/// Writes its bytes.
inline void copy_part(const ColumnCodes& columns, const ColumnPart& part, std::byte* to) {
  const int64_t codes_before = part.first_group * kGroup * part.rows * part.bits / 8;
  const int64_t zero_bytes = part.n_zero_words * 4, scale_bytes = part.rows * 2;
  const auto copy = [&](const std::byte* from, int64_t skip, int64_t bytes, int64_t at) {
    if (bytes > 0) columns.copy(from + skip, static_cast<size_t>(bytes), to + at);
  };
  copy(columns.codes, codes_before, part.code_bytes(), 0);
  copy(columns.zeros, part.first_scale * zero_bytes, part.n_scales * zero_bytes, part.zeros_at());
  copy(columns.scales, part.first_scale * scale_bytes, part.n_scales * scale_bytes, part.scales_at());
}

/// The 32 codes of row 8w + k, from the words w of the columns of a group.
INFER_HD void awq_group(const uint32_t words[kGroup], int k, uint8_t codes[kGroup]) {
  const int shift = 4 * (k % 2 * 4 + k / 2);
  for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(words[i] >> shift & 15);
}
/// The 32 codes of a row from its `bits` words of a group.
INFER_HD void gptq_group(const uint32_t* words, int bits, uint8_t codes[kGroup]) {
  for (int i = 0; i < kGroup; ++i)
    codes[i] = static_cast<uint8_t>(words[i * bits / 32] >> (i * bits % 32) & ((1u << bits) - 1));
}
/// The zero point of a row, among the words of its scale's group.
INFER_HD int zero_of_row(const uint32_t* words, bool awq, int bits, int zero_bias, int64_t row) {
  const int in_word = static_cast<int>(row % (32 / bits)), place = awq ? in_word % 2 * 4 + in_word / 2 : in_word;
  return static_cast<int>((words[row * bits / 32] >> (place * bits)) + static_cast<uint32_t>(zero_bias)) &
         ((1 << bits) - 1);
}

}  // namespace infer::cuda
