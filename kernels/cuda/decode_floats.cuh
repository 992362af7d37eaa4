// Weights of 8-bit floats times the activations of a few tokens, in f16 on tensor cores. A step of a warp is a tile's
// 16 rows times the 128 columns that share a scale: lane 4r + j holds 32 codes of group j of rows r and r + 8
// (packed.h), and since what k means is free, each mma.m16n8k16 takes a quad of both. Columns of the right operand are
// tokens. Sums of 128 columns are scaled in f32. About 55 instructions for 2048 weights, whatever the number of tokens.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_mma.cuh"

namespace infer::cuda {

/// Four e4m3 as two pairs of f16, times 1 / kE4m3InF16.
#if __CUDA_ARCH__ >= 890
inline constexpr float kE4m3InF16 = 1;
__device__ __forceinline__ uint2 e4m3_in_f16(uint32_t quad) {
  uint2 out;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 %1, "
      "high;\n}"
      : "=r"(out.x), "=r"(out.y)
      : "r"(quad));
  return out;
}
#else
inline constexpr float kE4m3InF16 = 256;
__device__ __forceinline__ uint2 e4m3_in_f16(uint32_t quad) {
  const auto pair = [](uint32_t bytes) { return (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u); };
  return {pair(__byte_perm(quad, 0, 0x1404)), pair(__byte_perm(quad, 0, 0x3424))};
}
#endif

/// Sums of rows r and r + 8 with tokens 2j and 2j + 1.
struct FloatState {
  float acc[2][2] = {};
};

/// Groups [g, g + 4) of a chunk whose first group is first_group of the row. act: the first token's row of f16.
template <class F>
__device__ __forceinline__ void float_step(const uint8_t* chunk, Chunk<F> c, int act, int act_row_bytes, int n_rows,
                                           int first_group, int g, FloatState& state) {
  const int lane = threadIdx.x % 32, r = lane / 4, j = lane % 4;
  uint32_t q[2][8];
  float scale[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    load_quads<F>(chunk, c, r + 8 * h, g + j, q[h]);
    scale[h] = *reinterpret_cast<const float*>(chunk + c.block_scale(r + 8 * h, g) + g % 8);
  }
  const int at = act + r * act_row_bytes + (first_group + g + j) * kGroup * 2;
  float d[4] = {};
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    uint4 x{};  // of two quads
    if (r < n_rows) x = *reinterpret_cast<const uint4*>(decode_memory() + at + i * 8);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint2 low = e4m3_in_f16(q[0][i + k]), high = e4m3_in_f16(q[1][i + k]);
      HalfType::mma(d, low.x, high.x, low.y, high.y, k ? x.z : x.x, k ? x.w : x.y);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int e = 0; e < 2; ++e) state.acc[h][e] = fmaf(scale[h] * kE4m3InF16, d[2 * h + e], state.acc[h][e]);
}

/// The sums of the warp's 16 rows into sums [M][16], and zeros in their place.
template <int M>
__device__ __forceinline__ void store_sums(FloatState& state, float* sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = lane % 4 * 2 + e;
      if (token < M) sums[token * kTileRows + lane / 4 + 8 * h] = state.acc[h][e];
      state.acc[h][e] = 0;
    }
}

}  // namespace infer::cuda
