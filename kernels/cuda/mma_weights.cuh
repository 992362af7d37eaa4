// Packed weights as operands of tensor cores: the scales of a lane's groups by wide loads (a row's scales lie so that
// loads of a few bytes by many rows would all meet in one bank of shared memory), and quads of codes as pairs of bf16.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/mma_plan.h"
#include "kernels/cuda/unpack.cuh"

namespace infer::cuda {

/// The undecoded scales of a row for the groups that a warp takes of a chunk.
template <class F>
struct RowScales {
  static constexpr int kGroups = 4 * kMmaSteps<F>;          ///< 4 or 8
  static constexpr bool kOwn = Chunk<F>::kGroupScale == 4;  ///< a lane loads its own group's: wide enough
  static constexpr int kBytes = kOwn ? 4 : Chunk<F>::kGroupScale * kGroups;
  uint4 group, block;

  /// first: the warp's first group, a multiple of kGroups; the chunk's groups are a multiple of 8.
  __device__ __forceinline__ void load(const uint8_t* chunk, Chunk<F> c, int row, int first, int j) {
    if constexpr (kGroups == 8 && !kOwn) {  // four groups of a row lie together
      group = load_bytes<kBytes / 2>(chunk + c.group_scale(row, first));
      const uint4 upper = load_bytes<kBytes / 2>(chunk + c.group_scale(row, first + 4));
      if constexpr (kBytes == 8) group.y = upper.x;
      if constexpr (kBytes == 16) group.z = upper.x, group.w = upper.y;
    } else {
      group = load_bytes<kBytes>(chunk + c.group_scale(row, kOwn ? first + j : first));
    }
    block = load_bytes<Chunk<F>::kBlockScale>(chunk + c.block_scale(row, first));
  }
  /// Of group first + 4 * step + j.
  __device__ __forceinline__ GroupScales decode(int first, int step, int j) const {
    const uint32_t w[4] = {group.x, group.y, group.z, group.w};
    uint32_t own = w[0];
    if constexpr (Chunk<F>::kGroupScale == 2) own = __byte_perm(w[2 * step], w[2 * step + 1], 0x10 + 0x22 * j);
    if constexpr (Chunk<F>::kGroupScale == 1) own = w[step] >> (8 * j);
    return decode_scales<F>(own, block, kGroups == 8 ? step : first % 8 / 4, j);
  }
};

__device__ __forceinline__ uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
}

/// How stored codes become weights in bf16. All put codes of up to seven bits under the exponent of 2^7, where bf16
/// counts in ones, and take the 2^7 off again without a rounding.
enum class Unbias {
  by_sums,  ///< (2^7 + stored) * scale - 2^7 * scale; bias and offset meet the sums of activations. One instruction a
            ///< pair
  at_once,  ///< (2^7 + stored) - (2^7 + bias), then the scale: stored codes far from zero would round too coarsely
  e4m3,     ///< an e4m3, whose exponent's place in a bf16 costs a power of two that the scale takes back
  signed_bytes,  ///< of eight bits; what is taken off has the sign as the lowest bit of its exponent: 2^7 or 2^8
};
template <class F>
inline constexpr Unbias kUnbias = Packed<F>::bias == kFloat                               ? Unbias::e4m3
                                  : Packed<F>::low_bits == 8 || Packed<F>::bias == kTable ? Unbias::signed_bytes
                                  : Packed<F>::bias > 8                                   ? Unbias::at_once
                                                                                          : Unbias::by_sums;
/// Terms that meet sums of activations, for a warp's groups of a chunk; 0 where nothing is left to them.
template <class F>
inline constexpr int kSumTerms = kUnbias<F> == Unbias::by_sums && (F::has_offset || Packed<F>::bias > 0)
                                     ? kMmaSteps<F>* kHalves<F>
                                     : 0;
template <class F>
inline constexpr bool kHasSums = kSumTerms<F> != 0;

/// A scale in both halves of a word, and what goes with it.
struct PairScale {
  uint32_t scale;
  uint32_t off;     ///< -2^7 * scale, exactly
  uint32_t offset;  ///< by_sums: of the weights
};
template <class F>
__device__ __forceinline__ PairScale pair_scale(const GroupScales& s, int half) {
  static_assert(kUnbias<F> == Unbias::by_sums || !F::has_offset);
  const float scale = kUnbias<F> == Unbias::e4m3 ? s.scale[half] * kE4m3InBf16 : s.scale[half];
  PairScale out{Bf16Type::pack(scale, scale), 0, 0};
  if constexpr (kUnbias<F> == Unbias::by_sums) {
    out.off = bf16x2_fma(out.scale, 0xc300c300u, 0x80008000u);
    float offset = F::has_offset ? s.offset[half] : 0.0f;
    if constexpr (Packed<F>::bias > 0) offset -= Packed<F>::bias * Bf16Type::low(out.scale);
    out.offset = Bf16Type::pack(offset, offset);
  }
  return out;
}

/// Codes 0 and 2 of a quad (pair 0), or 1 and 3, times their scale.
template <class F, int pair>
__device__ __forceinline__ uint32_t weight_pair(uint32_t quad, const PairScale& s) {
  constexpr uint32_t kOne = 0x3f803f80u, kTwo7 = 0x43004300u, kMinusTwo7 = 0xc300c300u, kMinusZero = 0x80008000u;
  if constexpr (kUnbias<F> == Unbias::e4m3) {
    return bf16x2_fma(e4m3_in_bf16<pair>(quad), s.scale, kMinusZero);
  } else if constexpr (kUnbias<F> == Unbias::signed_bytes) {
    const uint32_t bytes = pair == 0 ? quad : quad >> 8;
    const uint32_t code = bf16x2_fma((bytes & 0x007f007fu) | kTwo7, kOne, (bytes & 0x00800080u) | kMinusTwo7);
    return bf16x2_fma(code, s.scale, kMinusZero);
  } else {
    const uint32_t stored = __byte_perm(quad, kTwo7, pair == 0 ? 0x5250 : 0x5351);
    if constexpr (kUnbias<F> == Unbias::by_sums) return bf16x2_fma(stored, s.scale, s.off);
    constexpr uint32_t kOff = kMinusTwo7 + static_cast<uint32_t>(Packed<F>::bias) * 0x00010001u;  // bf16 counts in ones
    return bf16x2_fma(bf16x2_fma(stored, kOne, kOff), s.scale, kMinusZero);
  }
}

/// A number as the sum of two bf16, side by side.
__device__ __forceinline__ uint32_t split_bf16(float x) {
  const float high = Bf16Type::low(Bf16Type::pack(x, 0.0f));
  return Bf16Type::pack(x, x - high);
}

}  // namespace infer::cuda
