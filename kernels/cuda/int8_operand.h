// Activations of up to 8 tokens as matmul_int8 multiplies them, in shared memory and, where another kernel has made
// them, in global memory: int8 codes with a scale to each group of 32 columns or to each half of one. Two neighbouring
// groups are contiguous, such that lane 4t + j reads what it needs of both at once:
//
//   codes    [token][j][group of the pair][quads j, j + 4], a quad is four codes
//   scales   [half, where there are two][token / 2][group][token % 2], f32
//   sums     [half][token][group]: the half's scale times the sum of its codes, f32
//
// What there is of tokens that are not there counts for nothing.
#pragma once

#include <cstdint>

#include "quant/host_device.h"

namespace infer::cuda {

inline constexpr int kInt8Tokens = 8;

/// Offsets in bytes. kScales: 1 or 2, scales of a group.
template <int kScales>
struct Int8Operand {
  static constexpr int kScalesAt = 512, kSumsAt = kScalesAt + 64 * kScales, kPairBytes = kSumsAt + 128;
  static INFER_HD int64_t pair(int64_t group) { return group / 2 * kPairBytes; }
  static INFER_HD int64_t code(int64_t group, int token, int quad) {
    return pair(group) + token * 64 + quad % 4 * 16 + static_cast<int>(group % 2) * 8 + quad / 4 * 4;
  }
  static INFER_HD int64_t scale(int64_t group, int half, int token) {
    return pair(group) + kScalesAt + half * 64 + token / 2 * 16 + static_cast<int>(group % 2) * 8 + token % 2 * 4;
  }
  static INFER_HD int64_t sum(int64_t group, int half, int token) {
    return pair(group) + kSumsAt + half * 64 + token * 8 + static_cast<int>(group % 2) * 4;
  }
  /// Of a row of `cols` columns, a multiple of 64.
  static INFER_HD int64_t bytes(int64_t cols) { return cols / 64 * kPairBytes; }
};

}  // namespace infer::cuda
