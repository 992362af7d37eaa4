// Makes groups of int8 activations (int8_operand.h), in shared or global memory.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/int8_codes.cuh"
#include "kernels/cuda/int8_operand.h"

namespace infer::cuda {

/// Eight numbers that lie side by side.
struct Eight {
  float x[8];
  __device__ __forceinline__ void load_bf16(const void* from) {
    const uint4 v = *static_cast<const uint4*>(from);
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[2 * i] = Bf16Type::low(w[i]), x[2 * i + 1] = Bf16Type::high(w[i]);
  }
  __device__ __forceinline__ void load_f32(const void* from) {
    const float4 a = static_cast<const float4*>(from)[0], b = static_cast<const float4*>(from)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
};

/// What codes of a group are made with. matmul_int8 wants scales with two bits less than they could have, and so small
/// that 1.5 * 2^23 times as much is a number; of what is larger, or not finite, the scale is NaN.
struct Int8Scale {
  float inverse, scale;
  __device__ __forceinline__ explicit Int8Scale(float largest) {
    const bool usable = largest > 1e-30f && largest < 1e30f;
    inverse = usable ? __fdividef(127.0f, largest) : 0.0f;
    scale = usable ? largest * (1.0f / 127) : 0.0f;
    if (!(largest < 1e30f)) scale = __uint_as_float(0x7fc00000u);
  }
  static __device__ __forceinline__ float shortened(float x) { return __uint_as_float(__float_as_uint(x) & ~3u); }
};

/// Four neighbouring lanes have a group of a token, eight numbers each: puts it down, where it is `there`, in an
/// operand with a scale to each group. `factor`: what the numbers are to be multiplied with.
__device__ __forceinline__ void put_group(uint8_t* operand, int group, int token, const Eight& v, bool there,
                                          float factor) {
  using At = Int8Operand<1>;
  const int part = threadIdx.x % 4;
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = max_nan(largest, fabsf(v.x[i]));
#pragma unroll
  for (int step = 2; step > 0; step /= 2) largest = max_nan(largest, __shfl_xor_sync(~0u, largest, step));
  const Int8Scale s(largest);
  const uint32_t low = four_codes({v.x[0], v.x[1], v.x[2], v.x[3]}, s.inverse),
                 high = four_codes({v.x[4], v.x[5], v.x[6], v.x[7]}, s.inverse);
  int total = __dp4a(static_cast<int>(low), 0x01010101, __dp4a(static_cast<int>(high), 0x01010101, 0));
  total += __shfl_xor_sync(~0u, total, 1);
  const float scale = Int8Scale::shortened(s.scale * factor);
  if (!there) return;
  const auto word = [&](int64_t at) { return reinterpret_cast<uint32_t*>(operand + at); };
  *word(At::code(group, token, 2 * part)) = low, *word(At::code(group, token, 2 * part + 1)) = high;
  if (part == 0) *word(At::scale(group, 0, token)) = __float_as_uint(scale);
  if (part % 2 == 0) *word(At::sum(group, part / 2, token)) = __float_as_uint(scale * static_cast<float>(total));
}

/// The same of a warp, a number to a lane.
__device__ __forceinline__ void put_lanes(uint8_t* operand, int group, int token, float x) {
  using At = Int8Operand<1>;
  const int lane = threadIdx.x % 32;
  float largest = fabsf(x);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) largest = max_nan(largest, __shfl_xor_sync(~0u, largest, step));
  const Int8Scale s(largest);
  uint32_t code = __float_as_uint(fmaf(x, s.inverse, kIntegerBits)) & 255;
  int total = static_cast<int8_t>(code);
#pragma unroll
  for (int step = 8; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  code |= __shfl_down_sync(~0u, code, 1) << 8;
  code |= __shfl_down_sync(~0u, code, 2) << 16;  // in lanes 4 q: quad q
  const float scale = Int8Scale::shortened(s.scale);
  const auto word = [&](int64_t at) { return reinterpret_cast<uint32_t*>(operand + at); };
  if (lane % 4 == 0) *word(At::code(group, token, lane / 4)) = code;
  if (lane == 1) *word(At::scale(group, 0, token)) = __float_as_uint(scale);
  if (lane % 16 == 2) *word(At::sum(group, lane / 16, token)) = __float_as_uint(scale * static_cast<float>(total));
}

}  // namespace infer::cuda
