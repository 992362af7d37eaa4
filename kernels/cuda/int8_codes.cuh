// How activations become int8: the largest of a group, whatever it is, and rounded codes four at a time. What a group
// is and where its codes lie is the business of those who call.
#pragma once

#include "kernels/cuda/common.cuh"

namespace infer::cuda {

/// The larger one; NaN if one is NaN.
__device__ __forceinline__ float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

/// 1.5 * 2^23: a sum with it has no fraction, and the code in its lowest byte.
inline constexpr float kIntegerBits = 12582912.0f;

/// Four rounded codes in a word.
__device__ __forceinline__ uint32_t four_codes(float4 v, float inverse) {
  const auto code = [&](float x) { return __float_as_uint(fmaf(x, inverse, kIntegerBits)); };
  return __byte_perm(__byte_perm(code(v.x), code(v.y), 0x0040), __byte_perm(code(v.z), code(v.w), 0x0040), 0x5410);
}

}  // namespace infer::cuda
