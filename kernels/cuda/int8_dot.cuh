// A tile of packed weights times int8 activations of 8 tokens (int8_operand.h) for one warp of matmul_int8.cuh.
//
// An m16n8k32 is 16 rows times a group of 32 columns of 8 tokens: its result, scaled in f32, is added up. ldmatrix
// brings a lane the words j of rows r and r + 8 (lane 4r + j), hence quads j and j + 4 of the group, just as the left
// operand has them. Scales are decoded once, a lane two groups of its rows, and come by shuffles (f16 ones lie
// together, and every lane has all). Minimums, and what stored codes are off by, meet the groups' sums of activations
// in an m16n8k8 of tf32.
//
// Integers become floats without an instruction: sums begin with the bits of 1.5 * 2^23, and scales of activations have
// two bits less than they could, so that what is too much is taken off exactly in the multiplication with them.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_mma.cuh"
#include "kernels/cuda/int8_codes.cuh"
#include "kernels/cuda/int8_operand.h"
#include "kernels/cuda/wgmma_plan.h"

namespace infer::cuda {

/// d = a * b + c with a [16, 32] codes of weights (unsigned where kUnsigned), b [32, 8] codes of activations, signed.
template <bool kUnsigned = false>
__device__ __forceinline__ void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                         const int (&c)[4]) {
  if constexpr (kUnsigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  }
}
/// The same of half a group.
__device__ __forceinline__ void mma_int8_half(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
/// c += a * b with a [16, 8], b [8, 8] of tf32.
__device__ __forceinline__ void mma_tf32(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

/// Where a lane finds what it needs of a slot's tile, and of a pair of groups' activations: kept, or the compiler works
/// it out anew for every slot.
struct Int8Lane {
  int row, j;  ///< lane 4 * row + j
  int words;   ///< of an entry of 16 bytes: its address for an ldmatrix of four groups
  int codes, scales;
  __device__ __forceinline__ Int8Lane() {
    const auto keep = [](int v) { return static_cast<int>(kept_in_register(static_cast<uint32_t>(v))); };
    const int lane = threadIdx.x % 32, i = lane % 8, g = lane / 8;
    row = keep(lane / 4), j = keep(lane % 4);
    words = keep((i * 4 + (g + i / 2) % 4) * 16);
    codes = keep(lane * 16), scales = keep(lane % 4 * 16);
  }
};

/// How codes of 4 bits become operands: as they are; the second half of a group 16 times as much, or all of it: what is
/// in the upper halves of bytes stays there, unsigned.
enum class Nibbles { plain, second_upper, upper };

/// Codes of four groups of a tile as left operands: of each group quad j of rows r and r + 8, then quad j + 4.
template <class F>
struct StepCodes {
  uint32_t a[4][4];

  template <Nibbles kNibbles = Nibbles::plain>
  __device__ __forceinline__ void load(const uint8_t* chunk, Chunk<F> c, int step, const Int8Lane& lane) {
    using P = Packed<F>;
    const int j = lane.j;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t low[2][4] = {};
      if constexpr (P::low_bits == 2) {
        load_pairs_of_bits(chunk + c.low(lane.row + 8 * h, 4 * step), j, low);
      } else {
        load_words(chunk + c.low(0, 4 * step) + h * 512 + lane.words, low[0]);
        if constexpr (P::low_bits == 8) load_words(chunk + c.low_second(0, 4 * step) + h * 512 + lane.words, low[1]);
      }
      uint32_t high[2][4] = {};
      if constexpr (P::high_bits == 2) load_pairs_of_bits(chunk + c.high(lane.row + 8 * h, 4 * step), j, high);
      if constexpr (P::high_bits == 1) {
        const uint4 v = *reinterpret_cast<const uint4*>(chunk + c.high(lane.row + 8 * h, 4 * step));
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int g = 0; g < 4; ++g) high[0][g] = w[g] >> j & 0x01010101u, high[1][g] = w[g] >> (j + 4) & 0x01010101u;
      }
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        uint32_t q = low[0][g], second = low[1][g];
        if constexpr (P::low_bits == 4 && P::bias == kTable)
          second = table_quad<F>(q >> 16), q = table_quad<F>(q);
        else if constexpr (kNibbles == Nibbles::second_upper)
          second = q & 0xf0f0f0f0u, q &= 0x0f0f0f0fu;
        else if constexpr (kNibbles == Nibbles::upper)
          second = q & 0xf0f0f0f0u, q = q << 4 & 0xf0f0f0f0u;
        else if constexpr (P::low_bits == 4)
          second = q >> 4 & 0x0f0f0f0fu, q &= 0x0f0f0f0fu;
        if constexpr (P::high_bits > 0) q |= high[0][g] << P::low_bits, second |= high[1][g] << P::low_bits;
        a[g][h] = q, a[g][2 + h] = second;
      }
    }
  }

 private:
  /// Word j of eight rows' groups, of which lane 8 g + i gives the address of group g of row i.
  static __device__ __forceinline__ void load_words(const uint8_t* row, uint32_t (&w)[4]) {
    load_matrices<false>(row, w);
  }
  /// Quads j and j + 4 of a plane of two bits, of four groups that lie one after the other.
  static __device__ __forceinline__ void load_pairs_of_bits(const uint8_t* row, int j, uint32_t (&q)[2][4]) {
    const uint4 v[2] = {reinterpret_cast<const uint4*>(row)[0], reinterpret_cast<const uint4*>(row)[1]};
    const int shift = j / 2 * 2;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const uint4 u = v[g / 2];
      const uint32_t word = (j % 2 ? (g % 2 ? u.w : u.y) : (g % 2 ? u.z : u.x)) >> shift;
      q[0][g] = word & 0x03030303u, q[1][g] = word >> 4 & 0x03030303u;
    }
  }
};

/// Scales of rows r and r + 8 in kGroups groups. Lane j of a row decodes groups kOwn * j and on, and others get them by
/// shuffles; but f16 scales of a row lie together, so that each lane has all of them.
template <class F, int kGroups>
struct LaneScales {
  using P = Packed<F>;
  static constexpr int kOwn = kGroups / 4, kOf = kHalves<F>;
  static_assert(kOwn == 1 || kOwn == 2);
  static constexpr bool kHalf = P::scales == Scales::half;
  float scale[2][kOwn][kOf], offset[2][kOwn][kOf];  ///< of own groups; of f16 scales where there are biases
  uint32_t stored[2][kOwn][2];                      ///< f16 of all groups, by fours

  /// Of the groups from `first` of the chunk on. Where a lane has one only, single(row) brings its scales.
  template <class Single>
  __device__ __forceinline__ void load(const uint8_t* chunk, Chunk<F> c, int first, const Int8Lane& lane,
                                       const Single& single) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane.row + 8 * r;
      if constexpr (kHalf) {
        load_half(chunk, c, first, row, r, lane.j);
      } else if constexpr (kOwn == 2) {
        const PairScales<kOf> s = load_pair<F, kOf>(chunk, c, row, first + 2 * lane.j, 0);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int h = 0; h < kOf; ++h) scale[r][i][h] = s.scale[i][h], offset[r][i][h] = s.offset[i][h];
      } else {
        const GroupScales s = single(row);
#pragma unroll
        for (int h = 0; h < kOf; ++h) scale[r][0][h] = s.scale[h], offset[r][0][h] = s.offset[h];
      }
      if constexpr (P::bias > 0)
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
#pragma unroll
          for (int h = 0; h < kOf; ++h) {
            const float before = F::has_offset ? offset[r][i][h] : 0.0f;
            offset[r][i][h] = fmaf(-static_cast<float>(P::bias), scale[r][i][h], before);
          }
    }
  }
  /// Of group `group` of four number `four`, which need not be known when this is compiled.
  __device__ __forceinline__ float of(int row, int four, int group, int half) const {
    if constexpr (kHalf) {
      const uint32_t word = kOwn == 1 || four == 0 ? stored[row][0][group / 2] : stored[row][kOwn - 1][group / 2];
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&word));
      return group % 2 == 0 ? two.x : two.y;
    } else {
      return __shfl_sync(~0u, scale[row][group % kOwn][half], (4 * four + group) / kOwn, 4);
    }
  }

 private:
  __device__ __forceinline__ void load_half(const uint8_t* chunk, Chunk<F> c, int first, int row, int r, int j) {
#pragma unroll
    for (int four = 0; four < kOwn; ++four) {
      const uint2 v = *reinterpret_cast<const uint2*>(chunk + c.group_scale(row, first + 4 * four));
      stored[r][four][0] = v.x, stored[r][four][1] = v.y;
    }
    if constexpr (P::bias > 0)
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const auto* at = reinterpret_cast<const uint16_t*>(chunk + c.group_scale(row, first + kOwn * j + i));
        scale[r][i][0] = f16_to_f32(*at);
      }
  }
};

/// c += the columns of slot `number` of the row, of this warp's tile, times activations whose pair of groups `x` is.
/// bits: kIntegerBits.
template <class F, int kScales>
__device__ __forceinline__ void multiply_codes(const uint8_t* chunk, int number, const uint8_t* x, const Int8Lane& lane,
                                               const int (&bits)[4], float (&c)[4]) {
  using At = Int8Operand<kScales>;
  constexpr int kSlot = wgmma_slot_groups<F>(kInt8Tokens);
  using Scales = LaneScales<F, kSlot>;
  constexpr int kOwn = Scales::kOwn, kOf = Scales::kOf;
  constexpr int kParts = kOf == 2 || kScales == 2 ? 2 : 1;  // of a group, with scales of their own
  const Chunk<F> small{kSlot};
  Scales scales;
  scales.load(chunk, small, 0, lane, [&](int row) {
    return decode_scales<F>(load_bytes<Chunk<F>::kGroupScale>(chunk + small.group_scale(row, lane.j)).x,
                            load_bytes<Chunk<F>::kBlockScale>(chunk + small.block_scale(row, 0)), number % 2, lane.j);
  });
  if constexpr (kNeedsSums<F>) {
    const auto& o = scales.offset;
    if constexpr (kOwn == 2) {  // lane j: groups 2 j and 2 j + 1
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 sum =
            *reinterpret_cast<const float2*>(x + lane.j * At::kPairBytes + At::kSumsAt + 64 * h + 8 * lane.row);
        mma_tf32(c, o[0][0][h % kOf], o[1][0][h % kOf], o[0][1][h % kOf], o[1][1][h % kOf], sum.x, sum.y);
      }
    } else {
      const uint8_t* sums = x + At::kSumsAt + lane.j / 2 * At::kPairBytes + lane.j % 2 * 4 + 8 * lane.row;
      mma_tf32(c, o[0][0][0], o[1][0][0], o[0][0][kOf - 1], o[1][0][kOf - 1], *reinterpret_cast<const float*>(sums),
               *reinterpret_cast<const float*>(sums + 64));
    }
  }
  const uint8_t *of_codes = x + lane.codes, *of_scales = x + At::kScalesAt + lane.scales;
  // Each launch waits anew for its instructions, so half as many are better than no loop (8 tokens of 8B Q4_K_M: 3490
  // -> 3530 tok/s, H200, 2026-11-28).
#pragma unroll 1
  for (int step = 0; step < kSlot / 4; ++step) {
    StepCodes<F> w;
    w.load(chunk, small, step, lane);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int at = (2 * step + pair) * At::kPairBytes;
      const uint4 v = *reinterpret_cast<const uint4*>(of_codes + at);
      const uint32_t codes[2][2] = {{v.x, v.y}, {v.z, v.w}};
      float4 s[kScales];
#pragma unroll
      for (int h = 0; h < kScales; ++h) s[h] = *reinterpret_cast<const float4*>(of_scales + at + 64 * h);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int g = 2 * pair + i;
        int d[kParts][4];
        if constexpr (kParts == 1) {
          mma_int8(d[0], w.a[g], codes[i][0], codes[i][1], bits);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) mma_int8_half(d[h], w.a[g][2 * h], w.a[g][2 * h + 1], codes[i][h], bits);
        }
        float scale[kOf][2];
#pragma unroll
        for (int h = 0; h < kOf; ++h)
#pragma unroll
          for (int r = 0; r < 2; ++r) scale[h][r] = scales.of(r, step, g, h);
#pragma unroll
        for (int h = 0; h < kParts; ++h) {
          const float4& both = s[h % kScales];
          const float of[2] = {i == 0 ? both.x : both.z, i == 0 ? both.y : both.w};
#pragma unroll
          for (int e = 0; e < 4; ++e)
            c[e] =
                fmaf(scale[h % kOf][e / 2], fmaf(__int_as_float(d[h][e]), of[e % 2], -kIntegerBits * of[e % 2]), c[e]);
        }
      }
    }
  }
}

}  // namespace infer::cuda
