// 8-bit weights times the activations of a few tokens, in f16 on tensor cores. A step of a warp is a tile's 16 rows
// times 128 columns: lane 4r + j holds 32 codes of group j of rows r and r + 8 (packed.h), and since what k means is
// free, each mma.m16n8k16 takes a quad of both. Columns of the right operand are tokens where all 128 columns share a
// scale (e4m3), and two tokens times four groups where each group has one (integers): of a group's column only that
// group's activations are there, as in decode_mma.cuh. Sums are scaled in f32.
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

/// Four signed bytes as two pairs of f16, exactly: 0x6400 | i is the f16 of 1024 + i.
__device__ __forceinline__ uint2 int8_in_f16(uint32_t quad) {
  const uint32_t from_0 = quad ^ 0x80808080u;
  const auto pair = [&](uint32_t selector) {
    const uint32_t bits = __byte_perm(from_0, 0x64646464u, selector);
    const __half2 v = __hsub2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(1024 + 128));
    return *reinterpret_cast<const uint32_t*>(&v);
  };
  return {pair(0x4140), pair(0x4342)};
}

/// What a warp keeps from step to step: of e4m3 sums of rows r and r + 8 with tokens 2j and 2j + 1, of integers those
/// of each pair of tokens with token j / 2 of it, two groups' share.
template <class F, int M>
struct F16State {
  static constexpr bool kOneScale = FloatFormat<F>;
  float acc[kOneScale ? 2 : (M + 1) / 2][2] = {};
};

/// Groups [g, g + 4) of a chunk whose first group is first_group of the row. act: the first token's row of f16. kWhole:
/// all four are there. About 55 instructions for 2048 weights, whatever the number of tokens.
template <bool kWhole, FloatFormat F, int M>
__device__ __forceinline__ void f16_step(const uint8_t* chunk, Chunk<F> c, int act, int act_row_bytes, int n_rows,
                                         int first_group, int g, F16State<F, M>& state) {
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

/// The same of integers. 80 instructions bring codes into f16, 16 for each two tokens multiply them.
template <bool kWhole, class F, int M>
__device__ __forceinline__ void f16_step(const uint8_t* chunk, Chunk<F> c, int act, int act_row_bytes, int n_rows,
                                         int first_group, int g, F16State<F, M>& state) {
  constexpr int kPairs = (M + 1) / 2;  // of tokens
  const int lane = threadIdx.x % 32, r = lane / 4, j = lane % 4, of_pair = 2 * (j % 2);
  const bool there = kWhole || g + j < c.groups;
  uint32_t q[2][8] = {};
  float2 scale[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = r + 8 * h;
    if (there) load_quads<F>(chunk, c, row, g + j, q[h]);
    const auto of = [&](int i) {
      return reinterpret_cast<const uint16_t*>(chunk + c.group_scale(row, g + of_pair + i));
    };
    if constexpr (kWhole) {
      scale[h] = __half22float2(*reinterpret_cast<const __half2*>(of(0)));
    } else {
      if (g + of_pair < c.groups) scale[h].x = f16_to_f32(*of(0));
      if (g + of_pair + 1 < c.groups) scale[h].y = f16_to_f32(*of(1));
    }
  }
  float d[kPairs][4] = {};
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    uint2 codes[2][2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int k = 0; k < 2; ++k) codes[h][k] = int8_in_f16(q[h][i + k]);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int token = 2 * p + r / 4;
      uint4 x{};  // of two quads
      if (there && r % 4 == j && token < n_rows)
        x = *reinterpret_cast<const uint4*>(decode_memory() + act + token * act_row_bytes +
                                            (first_group + g + j) * kGroup * 2 + i * 8);
      HalfType::mma(d[p], codes[0][0].x, codes[1][0].x, codes[0][0].y, codes[1][0].y, x.x, x.y);
      HalfType::mma(d[p], codes[0][1].x, codes[1][1].x, codes[0][1].y, codes[1][1].y, x.z, x.w);
    }
  }
#pragma unroll
  for (int p = 0; p < kPairs; ++p)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      state.acc[p][h] = fmaf(scale[h].x, d[p][2 * h], fmaf(scale[h].y, d[p][2 * h + 1], state.acc[p][h]));
}

/// The sums of the warp's 16 rows into sums [M][16], and zeros in their place.
template <class F, int M>
__device__ __forceinline__ void store_sums(F16State<F, M>& state, float* sums) {
  const int lane = threadIdx.x % 32, j = lane % 4;
#pragma unroll
  for (auto& acc : state.acc)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float v = acc[e];
      int token, row = lane / 4;
      bool mine = true;
      if constexpr (F16State<F, M>::kOneScale) {  // acc: of a row, with two tokens
        token = 2 * j + e;
        row += 8 * static_cast<int>(&acc - state.acc);
      } else {  // of a pair of tokens, with two rows
        v += __shfl_xor_sync(~0u, v, 1);
        token = 2 * static_cast<int>(&acc - state.acc) + j / 2;
        row += 8 * e;
        mine = j % 2 == 0;
      }
      if (mine && token < M) sums[token * kTileRows + row] = v;
      acc[e] = 0;
    }
}

}  // namespace infer::cuda
