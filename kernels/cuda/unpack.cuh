// Takes groups of packed weights apart in registers: wide loads from a chunk (in global or shared memory), codes as
// quads of signed or unsigned bytes, scales as floats. What packed.h says byte by byte, in the few instructions that a
// kernel at the memory's speed can afford: about two integer operations a weight on an H200.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/packed.h"

namespace infer::cuda {

/// Whether sum(activation) is needed: the stored codes are biased, or the format has minimums.
template <class F>
inline constexpr bool kNeedsSums = Packed<F>::bias > 0 || F::has_offset;

/// Four nibbles of `four`, a code each, to four signed bytes of the format's table of 16.
template <class F>
__device__ __forceinline__ uint32_t table_quad(uint32_t four) {
  const auto word = [](int first) {  // folded to a constant
    uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out |= static_cast<uint32_t>(static_cast<uint8_t>(Packed<F>::table(first + i))) << (8 * i);
    return out;
  };
  const uint32_t t0 = word(0), t1 = word(4), t2 = word(8), t3 = word(12);
  const uint32_t low = __byte_perm(t0, t1, four), high = __byte_perm(t2, t3, four);
  return __byte_perm(low, high, 0x3210 | (four & 0x8888) >> 1);
}

/// The codes of a group as they lie there: the low bits (`second`: weights 16-31 of 8 bits), and the high ones.
struct RawLow {
  uint4 first, second;
};
template <class F>
__device__ __forceinline__ RawLow load_low(const uint8_t* chunk, Chunk<F> c, int row, int g) {
  using P = Packed<F>;
  RawLow raw{};
  if constexpr (P::low_bits == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(chunk + c.low(row, g));
    raw.first.x = v.x, raw.first.y = v.y;
  } else {
    raw.first = *reinterpret_cast<const uint4*>(chunk + c.low(row, g));
    if constexpr (P::low_bits == 8) raw.second = *reinterpret_cast<const uint4*>(chunk + c.low_second(row, g));
  }
  return raw;
}
template <class F>
__device__ __forceinline__ uint2 load_high(const uint8_t* chunk, Chunk<F> c, int row, int g) {
  uint2 raw{};
  if constexpr (Packed<F>::high_bits == 1) raw.x = *reinterpret_cast<const uint32_t*>(chunk + c.high(row, g));
  if constexpr (Packed<F>::high_bits == 2) raw = *reinterpret_cast<const uint2*>(chunk + c.high(row, g));
  return raw;
}

/// Quads 0..7 of a group without the high bits, or the table's values.
template <class F>
__device__ __forceinline__ void unpack_low(const RawLow& raw, uint32_t (&q)[8]) {
  using P = Packed<F>;
  constexpr uint32_t kNibbles = 0x0f0f0f0f, kPairs = 0x03030303;
  const uint4 &a = raw.first, &b = raw.second;
  if constexpr (P::low_bits == 8) {
    q[0] = a.x, q[1] = a.y, q[2] = a.z, q[3] = a.w, q[4] = b.x, q[5] = b.y, q[6] = b.z, q[7] = b.w;
  } else if constexpr (P::low_bits == 4) {
    const uint32_t w[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (P::bias == kTable) {
        q[i] = table_quad<F>(w[i]), q[i + 4] = table_quad<F>(w[i] >> 16);
      } else {
        q[i] = w[i] & kNibbles, q[i + 4] = w[i] >> 4 & kNibbles;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = (i % 2 ? a.y : a.x) >> (i / 2 * 2) & kPairs;
  }
}
template <class F>
__device__ __forceinline__ void unpack_high(uint2 raw, uint32_t (&q)[8]) {
  using P = Packed<F>;
  constexpr uint32_t kPairs = 0x03030303, kBits = 0x01010101;
  if constexpr (P::high_bits == 1) {
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] |= (raw.x >> i & kBits) << P::low_bits;
  } else if constexpr (P::high_bits == 2) {
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] |= ((i % 2 ? raw.y : raw.x) >> (i / 2 * 2) & kPairs) << P::low_bits;
  }
}

/// Codes 0 and 2 of a quad of e4m3 (pair 0), or 1 and 3, as bf16 times 2^-120: exponent and fraction where a bf16 has
/// them, subnormal ones too.
inline constexpr float kE4m3InBf16 = 0x1p120f;
template <int pair>
__device__ __forceinline__ uint32_t e4m3_in_bf16(uint32_t quad) {
  return ((pair == 0 ? quad << 8 : quad) & 0x80008000u) | ((pair == 0 ? quad << 4 : quad >> 4) & 0x07f007f0u);
}

/// Quads 0..7 of a group: stored codes, or the table's values.
template <class F>
__device__ __forceinline__ void load_quads(const uint8_t* chunk, Chunk<F> c, int row, int g, uint32_t (&q)[8]) {
  unpack_low<F>(load_low<F>(chunk, c, row, g), q);
  unpack_high<F>(load_high<F>(chunk, c, row, g), q);
}

/// weight = scale[h] * stored + offset[h] for the two halves of a group; equal where kHalves is 1. Offsets hold what
/// the bias of the codes costs.
struct GroupScales {
  float scale[2], offset[2];
};

/// From the bytes of the group, in the low end of a word, and those of its block, the first in `of_block.x`. The group
/// is number 4 * upper + j of its block of 8, j < 4.
template <class F>
__device__ __forceinline__ GroupScales decode_scales(uint32_t of_group, uint4 of_block, int upper, int j) {
  using P = Packed<F>;
  const auto low_half = [](uint32_t v) { return f16_to_f32(static_cast<uint16_t>(v)); };
  const auto high_half = [](uint32_t v) { return f16_to_f32(static_cast<uint16_t>(v >> 16)); };
  GroupScales s{};
  if constexpr (P::scales == Scales::half) {
    s.scale[0] = low_half(of_group);
  } else if constexpr (P::scales == Scales::half_min) {
    s.scale[0] = low_half(of_group), s.offset[0] = high_half(of_group);
  } else if constexpr (P::scales == Scales::half_zero) {
    s.scale[0] = low_half(of_group), s.offset[0] = -(s.scale[0] * high_half(of_group));
  } else if constexpr (P::scales == Scales::half_zero_128) {
    const uint32_t both = upper ? of_block.y : of_block.x;
    s.scale[0] = low_half(both), s.offset[0] = -(s.scale[0] * high_half(both));
  } else if constexpr (P::scales == Scales::exponent) {
    s.scale[0] = MXFP4::half_scale(static_cast<int>(of_group & 255));
  } else if constexpr (P::scales == Scales::six_bit_min) {
    const uint32_t low = (upper ? of_block.z : of_block.y) >> (8 * j) & 255, high = of_block.w >> (16 * upper + 4 * j);
    s.scale[0] = low_half(of_block.x) * static_cast<float>(low & 63);
    s.offset[0] = -(high_half(of_block.x) * static_cast<float>(low >> 6 | (high & 15) << 2));
  } else if constexpr (P::scales == Scales::six_bit_8) {
    const int g = 4 * upper + j;
    const int sub = static_cast<int>((of_block.y >> (4 * g) & 15) | (of_block.x >> (16 + 2 * g) & 3) << 4) - 32;
    s.scale[0] = low_half(of_block.x) * static_cast<float>(sub);
  } else if constexpr (P::scales == Scales::float_128) {
    s.scale[0] = __uint_as_float(upper ? of_block.y : of_block.x);
  } else if constexpr (P::scales == Scales::signed_byte) {
    const float d = low_half(of_block.x);
    s.scale[0] = d * static_cast<float>(static_cast<int8_t>(of_group));
    s.scale[1] = d * static_cast<float>(static_cast<int8_t>(of_group >> 8));
  } else if constexpr (P::scales == Scales::nibble_min) {
    const float scale = low_half(of_block.x), min = high_half(of_block.x);
    s.scale[0] = scale * static_cast<float>(of_group & 15),
    s.offset[0] = -(min * static_cast<float>(of_group >> 4 & 15));
    s.scale[1] = scale * static_cast<float>(of_group >> 8 & 15);
    s.offset[1] = -(min * static_cast<float>(of_group >> 12 & 15));
  } else {
    static_assert(P::scales == Scales::six_bit_16);
    const float d = low_half(of_block.x);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 2 * j + h;  // low bits: byte i of (y, z), a half for each `upper`; high bits: byte i % 4 of w
      const uint32_t low = (j < 2 ? of_block.y : of_block.z) >> (i % 4 * 8 + 4 * upper) & 15;
      const uint32_t high = of_block.w >> (i % 4 * 8 + 2 * (2 * upper + j / 2)) & 3;
      s.scale[h] = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    }
  }
  if constexpr (kHalves<F> == 1) s.scale[1] = s.scale[0], s.offset[1] = s.offset[0];
  return s;
}

/// `bytes` (1, 2, 4, 8 or 16, or none) at a multiple of their number.
template <int bytes>
__device__ __forceinline__ uint4 load_bytes(const uint8_t* p) {
  uint4 v{};
  if constexpr (bytes == 16) v = *reinterpret_cast<const uint4*>(p);
  if constexpr (bytes == 8) v.x = reinterpret_cast<const uint2*>(p)->x, v.y = reinterpret_cast<const uint2*>(p)->y;
  if constexpr (bytes == 4) v.x = *reinterpret_cast<const uint32_t*>(p);
  if constexpr (bytes == 2) v.x = *reinterpret_cast<const uint16_t*>(p);
  if constexpr (bytes == 1) v.x = *p;
  return v;
}

template <class F>
__device__ __forceinline__ GroupScales load_scales(const uint8_t* chunk, Chunk<F> c, int row, int g) {
  const uint8_t* of_block = chunk + c.block_scale(row, g);
  if constexpr (Packed<F>::scales == Scales::six_bit_min) {  // bytes, where a lane has a group: fewer instructions
    const uint32_t d = *reinterpret_cast<const uint32_t*>(of_block);
    const uint32_t low = of_block[4 + g % 8], high = of_block[12 + g % 8 / 2] >> (g % 2 * 4) & 15;
    GroupScales s{};
    s.scale[0] = s.scale[1] = f16_to_f32(static_cast<uint16_t>(d)) * static_cast<float>(low & 63);
    s.offset[0] = s.offset[1] =
        -(f16_to_f32(static_cast<uint16_t>(d >> 16)) * static_cast<float>(low >> 6 | high << 2));
    return s;
  }
  return decode_scales<F>(load_bytes<Chunk<F>::kGroupScale>(chunk + c.group_scale(row, g)).x,
                          load_bytes<Chunk<F>::kBlockScale>(of_block), g % 8 / 4, g % 4);
}

}  // namespace infer::cuda
