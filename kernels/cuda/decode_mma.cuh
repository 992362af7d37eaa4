// Quantised weights times the activations of a few tokens, on tensor cores. A step of a warp is a tile's 16 rows times
// 8 (or 4) groups of columns, the left operand of mma.m16n8k32 as packed.h lays it out: lane 4r + j holds 32 codes of
// group j of rows r and r + 8, of which each mma takes a quad. What k means is free, so the four lanes of a row are
// four groups. What would be wasted with one token, the eight columns, keeps the groups apart: of column n the right
// operand has only the codes of group n and zeros elsewhere, so that an element of the result is the integer dot
// product of a row with 16 weights' worth of one group, to be scaled in float32. It costs a third of what dp4a does,
// whose 32 lanes take 8 instructions for what is one here.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/ring.cuh"
#include "kernels/cuda/unpack.cuh"

namespace infer::cuda {

/// One row of int8 activations in shared memory: codes 0-15 and 16-31 of each group of 32, the scales of the two
/// halves, and scale * sum of the codes of each half.
struct ActView {
  int at;  ///< in decode_memory
  int n_groups;
  __device__ __forceinline__ int low(int g) const { return at + g * 16; }
  __device__ __forceinline__ int high(int g) const { return at + (n_groups + g) * 16; }
  __device__ __forceinline__ int scales(int g) const { return at + n_groups * 32 + g * 8; }
  __device__ __forceinline__ int sums(int g) const { return at + n_groups * 40 + g * 8; }
};

/// Groups of a chunk that one warp of the team takes, and how many of them at a time.
template <class F, int M>
inline constexpr int kWarpGroups = Packed<F>::chunk_groups / team_warps(M);
template <class F, int M>
inline constexpr int kStepGroups = kWarpGroups<F, M> < 8 ? kWarpGroups<F, M> : 8;

/// Formats of 4 bits and no table keep the codes of weights 16-31 in the upper halves of their bytes, times 16: what
/// masks them needs no shift, and the scale takes the 16 back.
template <class F>
inline constexpr bool kUpperHalves = Packed<F>::low_bits == 4 && Packed<F>::high_bits == 0 && Packed<F>::bias != kTable;

/// Of group four + j. kWhole: all four of them are there.
template <class F, bool kWhole>
__device__ __forceinline__ void load_dot_quads(const uint8_t* chunk, Chunk<F> c, int row, int four, int j,
                                               uint32_t (&q)[8]) {
  if constexpr (kUpperHalves<F>) {
    const int at = kWhole ? c.low_of_four(row, four, j) : c.low(row, four + j);
    const uint4 v = *reinterpret_cast<const uint4*>(chunk + at);
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = w[i] & 0x0f0f0f0fu, q[i + 4] = w[i] & 0xf0f0f0f0u;
  } else {
    load_quads<F>(chunk, c, row, four + j, q);
  }
}

/// d (+)= a * b with a [16, 32] (codes of weights, unsigned where kUnsigned), b [32, 8] signed.
template <bool kUnsigned>
__device__ __forceinline__ void mma_codes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                          uint32_t b1) {
  if constexpr (kUnsigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

/// 16 codes of activations for the lanes that hold a column's own group. The others keep their zeros for good: the load
/// is predicated, so that nothing has to be cleared again.
struct ActFragment {
  uint32_t v[4] = {};
  __device__ __forceinline__ void load(int mine, int at) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "+r"(v[0]), "+r"(v[1]), "+r"(v[2]), "+r"(v[3])
                 : "r"(shared_address(decode_memory()) + at), "r"(mine));
  }
  __device__ __forceinline__ void clear() { v[0] = v[1] = v[2] = v[3] = 0; }
};

/// Two numbers of 8 bits, one in the lower byte of each half of `x`, as floats: 0x6400 | i is the f16 of 1024 + i.
__device__ __forceinline__ float2 byte_pair(uint32_t x, uint32_t mask, uint32_t flip, float minus) {
  const uint32_t bits = (x & mask) ^ (0x64006400u | flip);
  return __half22float2(__hsub2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(minus)));
}

/// Four floats of two neighbouring groups, at a multiple of 16 only where kAligned.
template <bool kAligned>
__device__ __forceinline__ float4 load_four(int at) {
  if constexpr (kAligned) return *reinterpret_cast<const float4*>(decode_memory() + at);
  const float2 a = *reinterpret_cast<const float2*>(decode_memory() + at),
               b = *reinterpret_cast<const float2*>(decode_memory() + at + 8);
  return {a.x, a.y, b.x, b.y};
}

/// Scales of two neighbouring groups of a row, g (even) and g + 1. With kOf 1 and two scales to a group those of their
/// halves `half`.
template <int kOf>
struct PairScales {
  float scale[2][kOf] = {}, offset[2][kOf] = {};

  __device__ __forceinline__ void take(int i, const GroupScales& of, int half) {
#pragma unroll
    for (int h = 0; h < kOf; ++h) {
      const bool second = kOf == 2 ? h == 1 : half == 1;
      scale[i][h] = second ? of.scale[1] : of.scale[0], offset[i][h] = second ? of.offset[1] : of.offset[0];
    }
  }
};

template <class F, int kOf>
__device__ __forceinline__ PairScales<kOf> load_pair(const uint8_t* chunk, Chunk<F> c, int row, int g, int half) {
  using P = Packed<F>;
  PairScales<kOf> s;
  const auto set = [&](int i, float scale) {
#pragma unroll
    for (int h = 0; h < kOf; ++h) s.scale[i][h] = scale;
  };
  const uint8_t* of_group = chunk + c.group_scale(row, g);
  if constexpr (P::scales == Scales::six_bit_min) {
    const uint4 v = *reinterpret_cast<const uint4*>(chunk + c.block_scale(row, g));
    const uint32_t j = g % 8 / 2, x = __byte_perm(v.y, v.z, 0x1100 + j * 0x2222);
    const uint32_t high = __byte_perm(v.w, 0, 0x4440 + j) * 0x4004u;
    const float2 d = __half22float2(*reinterpret_cast<const __half2*>(&v.x));
    const float2 scale = byte_pair(x, 0x003f003f, 0, 1024);
    const float2 min = byte_pair((x >> 6 & 0x00030003u) | (high & 0x003c003cu), ~0u, 0, 1024);
    set(0, d.x * scale.x), set(1, d.x * scale.y);
#pragma unroll
    for (int h = 0; h < kOf; ++h) s.offset[0][h] = -(d.y * min.x), s.offset[1][h] = -(d.y * min.y);
  } else if constexpr (P::scales == Scales::half) {
    const float2 d = __half22float2(*reinterpret_cast<const __half2*>(of_group));
    set(0, d.x), set(1, d.y);
  } else if constexpr (P::scales == Scales::half_min || P::scales == Scales::half_zero) {
    const uint2 v = *reinterpret_cast<const uint2*>(of_group);
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&v.x)),
                 b = __half22float2(*reinterpret_cast<const __half2*>(&v.y));
    set(0, a.x), set(1, b.x);
#pragma unroll
    for (int h = 0; h < kOf; ++h) {
      s.offset[0][h] = P::scales == Scales::half_min ? a.y : -(a.x * a.y);
      s.offset[1][h] = P::scales == Scales::half_min ? b.y : -(b.x * b.y);
    }
  } else if constexpr (P::scales == Scales::half_zero_128) {
    const float2 both =
        __half22float2(*reinterpret_cast<const __half2*>(chunk + c.block_scale(row, g) + g % 8 / 4 * 4));
    set(0, both.x), set(1, both.x);
#pragma unroll
    for (int h = 0; h < kOf; ++h) s.offset[0][h] = s.offset[1][h] = -(both.x * both.y);
  } else if constexpr (P::scales == Scales::signed_byte && kOf == 1) {
    const uint32_t v = *reinterpret_cast<const uint32_t*>(of_group);
    const float2 scale = byte_pair(__byte_perm(v, 0, 0x4240 + half * 0x0101), 0x00ff00ff, 0x00800080, 1024 + 128);
    const float d = f16_to_f32(*reinterpret_cast<const uint16_t*>(chunk + c.block_scale(row, g)));
    set(0, d * scale.x), set(1, d * scale.y);
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) s.take(i, load_scales<F>(chunk, c, row, g + i), half);
  }
  return s;
}

/// The same where a chunk's last groups are fewer: zeros for those that are not there.
template <class F, int kOf>
__device__ __forceinline__ PairScales<kOf> load_pair_within(const uint8_t* chunk, Chunk<F> c, int row, int g,
                                                            int half) {
  PairScales<kOf> s;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (g + i < c.groups) s.take(i, load_scales<F>(chunk, c, row, g + i), half);
  return s;
}

/// What a warp keeps from step to step: sums of rows r and r + 8, a lane's share of them, and the fragments' zeros.
template <class F, int M>
struct MmaState {
  float acc[2][M] = {};
  ActFragment b[kStepGroups<F, M> / 4][2];
};

/// Groups [g, g + kStepGroups) of a chunk whose first group is first_group of the row. kWhole: all are there.
template <class F, int M, bool kWhole>
__device__ __forceinline__ void mma_step(const uint8_t* chunk, Chunk<F> c, const int (&act_rows)[M], int n_groups,
                                         int first_group, int g, MmaState<F, M>& state) {
  constexpr int kSets = kStepGroups<F, M> / 4;  // of four groups: 2 take the halves of a group one after the other
  constexpr int kOf = kSets == 1 ? 1 : kHalves<F>;
  constexpr float kBias = Packed<F>::bias > 0 ? Packed<F>::bias : 0;
  const int lane = threadIdx.x % 32, r = lane / 4, j = lane % 4;
  // Whole pieces: what a lane adds to their beginning is the same in all steps.
  constexpr bool kPieces = kWhole && 4 * kSets % Chunk<F>::kPiece == 0;
  const uint8_t* from = kPieces ? chunk + g / Chunk<F>::kPiece * Chunk<F>::kPieceBytes : chunk;
  const Chunk<F> part = kPieces ? Chunk<F>{4 * kSets} : c;
  const int in_part = kPieces ? 0 : g;
  uint32_t q[kSets][2][8];
#pragma unroll
  for (int set = 0; set < kSets; ++set)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int group = g + 4 * set + j;
      if (kWhole || group < c.groups) {
        load_dot_quads<F, kWhole>(from, part, r + 8 * h, in_part + 4 * set, j, q[set][h]);
      } else {
        for (uint32_t& quad : q[set][h]) quad = 0;
      }
    }
  // Of the result this lane has columns 2j and 2j + 1: groups, or the lower (upper) halves of groups where j is less.
  const int of_step = 2 * (kSets == 2 ? j : j % 2), pair = g + of_step, half = j / 2;
  PairScales<kOf> w[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    w[h] = kWhole ? load_pair<F, kOf>(from, part, r + 8 * h, in_part + of_step, half)
                  : load_pair_within<F, kOf>(chunk, c, r + 8 * h, pair, half);
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const ActView act{act_rows[m], n_groups};
    int d[kSets][4] = {};
    // Column n of the right operand is what the lanes 4n .. 4n + 3 hold. One mma takes two quads of one set.
    if constexpr (kSets == 2) {
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        const bool there = (kWhole || g + 4 * set + j < c.groups) && r == j + 4 * set;
        const int group = first_group + g + 4 * set + j;
        if constexpr (!kWhole) state.b[set][0].clear(), state.b[set][1].clear();
        state.b[set][0].load(there, act.low(group));
        state.b[set][1].load(there, act.high(group));
      }
    } else {
      const bool there = kWhole || g + j < c.groups;
      if constexpr (!kWhole) state.b[0][0].clear(), state.b[0][1].clear();
      state.b[0][0].load(there && r == j, act.low(first_group + g + j));
      state.b[0][1].load(there && r == j + 4, act.high(first_group + g + j));
    }
#pragma unroll
    for (int half_group = 0; half_group < 2; ++half_group)
#pragma unroll
      for (int set = 0; set < kSets; ++set)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int k = 4 * half_group + 2 * i;
          const ActFragment& b = state.b[set][half_group];
          mma_codes<kUpperHalves<F>>(d[half_group % kSets], q[set][0][k], q[set][1][k], q[set][0][k + 1],
                                     q[set][1][k + 1], b.v[2 * i], b.v[2 * i + 1]);
        }
    float4 scale = load_four<kWhole>(act.scales(first_group + pair));
    float4 sum = kNeedsSums<F> ? load_four<kWhole>(act.sums(first_group + pair)) : float4{};
    if (!kWhole && pair >= c.groups) scale.x = scale.y = sum.x = sum.y = 0;
    if (!kWhole && pair + 1 >= c.groups) scale.z = scale.w = sum.z = sum.w = 0;
    if constexpr (kUpperHalves<F>) scale.y *= 0.0625f, scale.w *= 0.0625f;
    const float scales[2][2] = {{scale.x, scale.y}, {scale.z, scale.w}}, sums[2][2] = {{sum.x, sum.y}, {sum.z, sum.w}};
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto dot = [&](int set) { return static_cast<float>(d[set][2 * h + i]); };
        float& acc = state.acc[h][m];
        if constexpr (kSets == 1) {
          const float of = half ? scales[i][1] : scales[i][0], s = half ? sums[i][1] : sums[i][0];
          const float x = kBias > 0 ? fmaf(-kBias, s, of * dot(0)) : of * dot(0);
          acc = fmaf(w[h].scale[i][0], x, acc);
          if constexpr (F::has_offset) acc = fmaf(w[h].offset[i][0], s, acc);
        } else if constexpr (kOf == 1) {
          const float s = sums[i][0] + sums[i][1];
          float x = fmaf(scales[i][kSets - 1], dot(kSets - 1), scales[i][0] * dot(0));
          if constexpr (kBias > 0) x = fmaf(-kBias, s, x);
          acc = fmaf(w[h].scale[i][0], x, acc);
          if constexpr (F::has_offset) acc = fmaf(w[h].offset[i][0], s, acc);
        } else {
#pragma unroll
          for (int of = 0; of < 2; ++of) {
            float x = scales[i][of] * dot(of % kSets);
            if constexpr (kBias > 0) x = fmaf(-kBias, sums[i][of], x);
            acc = fmaf(w[h].scale[i][of % kOf], x, acc);
            if constexpr (F::has_offset) acc = fmaf(w[h].offset[i][of % kOf], sums[i][of], acc);
          }
        }
      }
  }
}

/// The sums of the warp's 16 rows into sums [M][16].
template <class F, int M>
__device__ __forceinline__ void store_sums(const MmaState<F, M>& state, float* sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float v = state.acc[h][m];
      v += __shfl_xor_sync(~0u, v, 1);
      v += __shfl_xor_sync(~0u, v, 2);
      if (lane % 4 == 0) sums[m * kTileRows + lane / 4 + 8 * h] = v;
    }
}

}  // namespace infer::cuda
