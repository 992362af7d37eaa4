// Takes a chunk of a packed tile apart: codes to bytes, scales to floats. The same for every instruction set S, and
// right for whatever Packed says of a format. Included through matmul_kernels.h, hence the anonymous namespace.
#pragma once

#include "kernels/cpu/packed.h"

namespace infer::cpu {
namespace {

template <class S, int halves>
struct GroupScales {
  typename S::Float scale[halves], offset[halves];
};

/// The codes of a group, quad by quad, as S::dot wants them.
template <class S, class F>
INFER_HD void unpack_codes(const uint8_t* p, typename S::Bytes w[8]) {
  using P = Packed<F>;
  if constexpr (P::low_bits == 8) {
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) w[q] = S::load_bytes(p + q * kCodeVector);
  } else if constexpr (P::low_bits == 4) {
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) {
      const auto both = S::load_bytes(p + v * kCodeVector);
      w[v] = S::bit_and(both, 15);
      w[v + 4] = S::bit_and(S::template shift_right<4>(both), 15);
    }
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < 2; ++v) {
      const auto all = S::load_bytes(p + v * kCodeVector);
      w[v] = S::bit_and(all, 3);
      w[v + 2] = S::bit_and(S::template shift_right<2>(all), 3);
      w[v + 4] = S::bit_and(S::template shift_right<4>(all), 3);
      w[v + 6] = S::bit_and(S::template shift_right<6>(all), 3);
    }
  }
  p += P::low_bits * kCodeVector;
  if constexpr (P::high_bits == 2) {
    static_assert(P::low_bits == 4);
#pragma GCC unroll 8
    for (int v = 0; v < 2; ++v) {
      const auto all = S::load_bytes(p + v * kCodeVector);
      w[v] = S::bit_or(w[v], S::bit_and(S::template shift_left<4>(all), 0x30));
      w[v + 2] = S::bit_or(w[v + 2], S::bit_and(S::template shift_left<2>(all), 0x30));
      w[v + 4] = S::bit_or(w[v + 4], S::bit_and(all, 0x30));
      w[v + 6] = S::bit_or(w[v + 6], S::bit_and(S::template shift_right<2>(all), 0x30));
    }
  } else if constexpr (P::high_bits == 1) {
    const auto all = S::load_bytes(p);
    constexpr int kBit = 1 << P::low_bits;
    w[0] = S::bit_or(w[0], S::bit_and(S::template shift<P::low_bits>(all), kBit));
    w[1] = S::bit_or(w[1], S::bit_and(S::template shift<P::low_bits - 1>(all), kBit));
    w[2] = S::bit_or(w[2], S::bit_and(S::template shift<P::low_bits - 2>(all), kBit));
    w[3] = S::bit_or(w[3], S::bit_and(S::template shift<P::low_bits - 3>(all), kBit));
    w[4] = S::bit_or(w[4], S::bit_and(S::template shift<P::low_bits - 4>(all), kBit));
    w[5] = S::bit_or(w[5], S::bit_and(S::template shift<P::low_bits - 5>(all), kBit));
    w[6] = S::bit_or(w[6], S::bit_and(S::template shift<P::low_bits - 6>(all), kBit));
    w[7] = S::bit_or(w[7], S::bit_and(S::template shift<P::low_bits - 7>(all), kBit));
  }
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) w[q] = S::template finish<P>(w[q]);
}

/// N values of 6 bits of 16 rows each, one byte to a value.
template <int N>
INFER_HD void unpack_six_bits(const uint8_t* p, uint8_t* out) {
  static_assert(N % 8 == 0);
  for (int i = 0; i < N / 4 * kTile; ++i) {
    const uint8_t low0 = p[i], low1 = p[N / 4 * kTile + i], high = p[N / 2 * kTile + i];
    out[i] = static_cast<uint8_t>((low0 & 15) | (high & 3) << 4);
    out[N / 4 * kTile + i] = static_cast<uint8_t>((low1 & 15) | (high & 12) << 2);
    out[N / 2 * kTile + i] = static_cast<uint8_t>(low0 >> 4 | (high & 48));
    out[3 * N / 4 * kTile + i] = static_cast<uint8_t>(low1 >> 4 | (high & 192) >> 2);
  }
}

/// Reads the scales of a chunk: begin once, then group by group.
template <class S, class F>
class ChunkScales {
 public:
  static constexpr ScaleKind kKind = Packed<F>::scales;
  static constexpr int kHalves = halves_of(kKind);
  using Float = typename S::Float;

  INFER_HD explicit ChunkScales(const uint8_t* p) : p_(p) {
    if constexpr (F::block != kGroup && kKind != ScaleKind::half_zero_128) {
      d_ = S::load_f16(p);
      p_ += 2 * kTile;
      if constexpr (has_mins(kKind)) {
        min_ = S::sub(S::zero(), S::load_f16(p_));
        p_ += 2 * kTile;
      }
    }
    if constexpr (kKind == ScaleKind::six_bit_8) S::template six_bits<8>(p_, subs_);
    if constexpr (kKind == ScaleKind::six_bit_16 || kKind == ScaleKind::six_bit_min)
      S::template six_bits<16>(p_, subs_);
  }

  INFER_HD void get(int g, GroupScales<S, kHalves>& out) const {
    constexpr bool kZeros = kKind == ScaleKind::half_zero || kKind == ScaleKind::half_zero_128;
    if constexpr (kKind == ScaleKind::half || kKind == ScaleKind::half_min || kZeros) {
      const uint8_t* at = p_ + (kKind == ScaleKind::half_zero_128 ? g / 4 * 4 * kTile : g * scale_bytes(kKind, 1));
      out.scale[0] = S::load_f16(at);
      if constexpr (kKind == ScaleKind::half_min) out.offset[0] = S::load_f16(at + 2 * kTile);
      if constexpr (kZeros) out.offset[0] = S::sub(S::zero(), S::mul(out.scale[0], S::load_f16(at + 2 * kTile)));
    } else if constexpr (kKind == ScaleKind::exponent) {
      out.scale[0] = S::load_exponent(p_ + g * kTile);
    } else if constexpr (kKind == ScaleKind::six_bit_min) {
      out.scale[0] = S::mul(d_, S::load_u8(subs_ + g * kTile));
      out.offset[0] = S::mul(min_, S::load_u8(subs_ + (kChunkGroups + g) * kTile));
    } else {
      for (int half = 0; half < kHalves; ++half) get_half(kHalves * g + half, out.scale[half], out.offset[half]);
    }
  }

 private:
  INFER_HD void get_half(int sub, Float& scale, Float& offset) const {
    if constexpr (kKind == ScaleKind::nibble_min) {
      scale = S::mul(d_, S::load_u8_low(p_ + sub * kTile));
      offset = S::mul(min_, S::load_u8_high(p_ + sub * kTile));
    } else if constexpr (kKind == ScaleKind::signed_byte) {
      scale = S::mul(d_, S::load_i8(p_ + sub * kTile));
    } else {
      scale = S::mul(d_, S::sub(S::load_u8(subs_ + sub * kTile), S::set(32.0f)));
    }
  }

  const uint8_t* p_;
  Float d_, min_;
  alignas(64) uint8_t subs_[16 * kTile];
};

}  // namespace
}  // namespace infer::cpu
