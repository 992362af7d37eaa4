// Packed weights as the left operand of wgmma: codes as they are stored, put into pairs of bf16 in as few instructions
// as there can be, and the scales of a lane's group. Codes are exact in bf16, so that only scale and offset round.
#pragma once

#include "kernels/cuda/mma_weights.cuh"
#include "kernels/cuda/ring.cuh"

namespace infer::cuda {

/// Whether codes are put into the upper bits of a bf16's mantissa, one instruction from where they are stored. 16 is
/// taken off again without a rounding.
template <class F>
inline constexpr bool kUpperCodes = Packed<F>::low_bits == 4 && Packed<F>::high_bits == 0 && Packed<F>::bias != kTable;

/// word & mask | bits, in one instruction: there are two where both are constants.
template <uint32_t mask>
__device__ __forceinline__ uint32_t masked(uint32_t word, uint32_t bits) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(word), "n"(mask), "r"(bits));
  return y;
}

/// bf16 pairs that codes are put into, kept in registers.
struct WgmmaBits {
  uint32_t sixteen = kept_in_register(0x41804180u);
  uint32_t two7 = kept_in_register(0x43004300u), minus_two7 = kept_in_register(0xc300c300u);
};

/// Codes of two rows of a group, as they are stored or as quads.
template <class F>
struct WgmmaCodes {
  uint32_t q[2][kUpperCodes<F> ? 4 : 8];
  __device__ __forceinline__ void load(const uint8_t* chunk, Chunk<F> c, int row, int g) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kUpperCodes<F>) {
        const uint4 v = *reinterpret_cast<const uint4*>(chunk + c.low(row + 8 * r, g));
        q[r][0] = v.x, q[r][1] = v.y, q[r][2] = v.z, q[r][3] = v.w;
      } else {
        load_quads<F>(chunk, c, row + 8 * r, g, q[r]);
      }
    }
  }
  /// Two weights of quad `i` that lie side by side along the columns, in bf16: codes 0 and 2 (pair 0), or 1 and 3.
  template <int i, int pair>
  __device__ __forceinline__ uint32_t weights(const WgmmaBits& bits, int r, uint32_t scale, uint32_t offset,
                                              uint32_t base) const {
    constexpr uint32_t kOne = 0x3f803f80u, kMinusTwo7 = 0xc300c300u;
    if constexpr (kUpperCodes<F>) {
      constexpr int kShift = (i < 4 ? -3 : 1) + (pair == 0 ? 0 : 8);  // to the right
      const uint32_t word = q[r][i % 4], moved = kShift < 0 ? word << -kShift : word >> (kShift < 0 ? 0 : kShift);
      return bf16x2_fma(bf16x2_fma(masked<0x00780078u>(moved, bits.sixteen), kOne, base), scale, offset);
    }
    const uint32_t quad = q[r][i % (kUpperCodes<F> ? 4 : 8)];
    uint32_t code;
    if constexpr (kUnbias<F> == Unbias::e4m3) {
      code = e4m3_in_bf16<pair>(quad);
    } else if constexpr (kUnbias<F> == Unbias::signed_bytes) {
      const uint32_t bytes = pair == 0 ? quad : quad >> 8;
      code = bf16x2_fma(masked<0x007f007fu>(bytes, bits.two7), kOne, masked<0x00800080u>(bytes, bits.minus_two7));
    } else {
      constexpr uint32_t kOff = kMinusTwo7 + static_cast<uint32_t>(Packed<F>::bias) * 0x00010001u;  // counts in ones
      code = bf16x2_fma(__byte_perm(quad, bits.two7, pair == 0 ? 0x5250 : 0x5351), kOne, kOff);
    }
    return bf16x2_fma(code, scale, offset);
  }
};

/// Scales of a lane's group of two rows, in both halves of words.
template <class F>
struct WgmmaScales {
  static constexpr bool kZeros128 = Packed<F>::scales == Scales::half_zero_128;
  static constexpr bool kZeros = Packed<F>::scales == Scales::half_zero || kZeros128;  ///< whole ones, as a rule: exact
  uint32_t scale[2][kHalves<F>], offset[2][kHalves<F>];
  uint32_t base[2];  ///< what is added to 16 + a stored code
  /// The bytes of the group and of its block; `upper` as for decode_scales().
  __device__ __forceinline__ void set_base(int row, uint32_t of_group, uint4 of_block, int upper) {
    float zero = Packed<F>::bias > 0 ? Packed<F>::bias : 0;
    if constexpr (kZeros128) of_group = upper ? of_block.y : of_block.x;
    if constexpr (kZeros) zero = f16_to_f32(static_cast<uint16_t>(of_group >> 16));
    base[row] = Bf16Type::pack(-16 - zero, -16 - zero);
  }
  __device__ __forceinline__ void set(int row, const GroupScales& s) {
#pragma unroll
    for (int h = 0; h < kHalves<F>; ++h) {
      const float of = kUnbias<F> == Unbias::e4m3 ? s.scale[h] * kE4m3InBf16 : s.scale[h];
      scale[row][h] = Bf16Type::pack(of, of);
      offset[row][h] = F::has_offset && !kZeros ? Bf16Type::pack(s.offset[h], s.offset[h]) : 0x80008000u;
    }
  }
};

}  // namespace infer::cuda
