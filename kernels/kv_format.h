// What a KV cache may be stored as, and the rotation of heads that makes four bits enough. Keys have a few large
// elements in every head, and a block of 32 has one scale: what is large costs the others their bits. The
// Walsh-Hadamard transform spreads every element over its whole block (arXiv:2404.00456); it is orthonormal, so that
// queries rotated alike give the same scores, and its own inverse, so that it brings back sums of rotated values. Plain
// C++ for all backends; nvcc compiles it too.
#pragma once

#include <cstdint>

#include "quant/formats.h"

namespace infer {

/// Formats of a KV cache, and their names for messages.
using KvFormats = FormatList<F32, F16, BF16, Q8_0, Q4_0>;
inline constexpr const char* kKvFormatNames = "f32, f16, bf16, q8_0, q4_0";

INFER_HD constexpr bool is_kv_format(DType type) { return in_list(KvFormats{}, type); }

/// How many elements of a head are rotated together in a cache of this type: the largest power of two that divides the
/// head size. 1: the cache holds heads as they are.
INFER_HD constexpr int64_t kv_rotation(DType type, int64_t head_dim) {
  return type == DType::Q4_0 ? head_dim & -head_dim : 1;
}

/// 1 / sqrt(block), of a power of two.
INFER_HD constexpr float hadamard_scale(int64_t block) {
  float scale = 1;
  for (; block >= 4; block /= 4) scale *= 0.5f;
  return block == 2 ? scale * 0.70710678f : scale;
}

}  // namespace infer
