// The packed form of every weight format: how the bits of a tile of 16 rows lie. One specialisation of Packed per
// format and nothing else to add for a new one. Knows neither instruction sets nor arithmetic.
//
// A tile is a sequence of chunks of up to 8 groups of 32 weights (256 columns; the last one may be shorter). A chunk
// holds its scales, then the codes of its groups, so one pass reads one stream of ascending addresses. It has just the
// bits of the file, in another order:
//
//   codes of a group: planes. In a 64-byte vector the byte 4 * row + i belongs to weight 4 * quad + i of that row,
//   where quad is 0..7. Planes of 8 bits: 8 vectors, one to a quad. Of 4 bits: 4 vectors, v holds quad v in its low
//   half and quad v + 4 in its high half. Of 2 bits: 2 vectors, v holds quads v, v + 2, v + 4, v + 6 from low to high.
//   Of 1 bit: one vector, quad q at bit q. The lower plane comes first.
//
//   scales: 16 rows side by side, see ScaleKind.
//
// Plain formats: F32 and F16 as [k][16 rows], BF16 as [k / 2][16 rows][2], the last k padded with zero.
#pragma once

#include <cstdint>

#include "quant/formats.h"

namespace infer::cpu {

inline constexpr int kTile = 16;        ///< rows
inline constexpr int kChunkGroups = 8;  ///< groups of 32 columns to a chunk
inline constexpr int kCodeVector = 64;  ///< bytes: 16 rows of 4 codes

enum class ScaleKind {
  half,           ///< f16 d[n][16]
  half_min,       ///< f16 {d[16], m[16]}[n]
  half_zero,      ///< f16 {d[16], zero[16]}[n]: the offset is -(d * zero)
  half_zero_128,  ///< f16 {d[16], zero[16]}[2], of four groups each; the offset is -(d * zero)
  exponent,       ///< u8 e[n][16], MXFP4's
  six_bit_8,      ///< f16 d[16]; 8 values of 6 bits: scale - 32 of a group
  six_bit_16,     ///< f16 d[16]; 16 values of 6 bits: scale - 32 of a half group
  six_bit_min,    ///< f16 d[16], dmin[16]; 16 values of 6 bits: 8 scales, 8 mins
  nibble_min,     ///< f16 d[16], dmin[16]; u8 [16][16]: scale (low half) and min of a half group
  signed_byte,    ///< f16 d[16]; i8 [16][16]: scale of a half group
};
// N values of 6 bits (N = 8, 16) of 16 rows: u8 [N/2][16] low four bits, value i below value i + N/2; then u8 [N/4][16]
// high two bits, values i, i + N/4, i + N/2, i + 3N/4 from low to high.

/// low, high: bits of the two planes. bias: code = stored - bias; kTable: code = F's table of the stored value.
template <class F>
struct Packed;

inline constexpr int kTable = -1;

template <int low, int high, int bias_, ScaleKind kind>
struct PackedAs {
  static constexpr int low_bits = low;
  static constexpr int high_bits = high;
  static constexpr int bias = bias_;
  static constexpr bool is_signed = bias_ != 0;
  static constexpr int largest =
      bias_ == 128 ? 128 : (1 << (low + high)) - 1;  ///< stored value; or code, where signed bytes
  static constexpr ScaleKind scales = kind;
};

template <>
struct Packed<Q4_0> : PackedAs<4, 0, 8, ScaleKind::half> {};
template <>
struct Packed<Q4_1> : PackedAs<4, 0, 0, ScaleKind::half_min> {};
template <>
struct Packed<W4G> : PackedAs<4, 0, 0, ScaleKind::half_zero> {};
template <>
struct Packed<W4G128> : PackedAs<4, 0, 0, ScaleKind::half_zero_128> {};
template <>
struct Packed<Q5_0> : PackedAs<4, 1, 16, ScaleKind::half> {};
template <>
struct Packed<Q5_1> : PackedAs<4, 1, 0, ScaleKind::half_min> {};
template <>
struct Packed<Q8_0> : PackedAs<8, 0, 128, ScaleKind::half> {};
template <>
struct Packed<Q2_K> : PackedAs<2, 0, 0, ScaleKind::nibble_min> {};
template <>
struct Packed<Q3_K> : PackedAs<2, 1, 4, ScaleKind::six_bit_16> {};
template <>
struct Packed<Q4_K> : PackedAs<4, 0, 0, ScaleKind::six_bit_min> {};
template <>
struct Packed<Q5_K> : PackedAs<4, 1, 0, ScaleKind::six_bit_min> {};
template <>
struct Packed<Q6_K> : PackedAs<4, 2, 32, ScaleKind::signed_byte> {};
template <>
struct Packed<IQ4_NL> : PackedAs<4, 0, kTable, ScaleKind::half> {
  static constexpr int largest = 127;
  static INFER_HD int table(int stored) { return IQ4_NL::level(stored); }
};
template <>
struct Packed<IQ4_XS> : PackedAs<4, 0, kTable, ScaleKind::six_bit_8> {
  static constexpr int largest = 127;
  static INFER_HD int table(int stored) { return IQ4_NL::level(stored); }
};
template <>
struct Packed<MXFP4> : PackedAs<4, 0, kTable, ScaleKind::exponent> {
  static constexpr int largest = 12;
  static INFER_HD int table(int stored) { return MXFP4::twice_value(stored); }
};

/// Scales per group of 32: two where they change in its middle.
INFER_HD constexpr int halves_of(ScaleKind kind) {
  return kind == ScaleKind::six_bit_16 || kind == ScaleKind::nibble_min || kind == ScaleKind::signed_byte ? 2 : 1;
}

INFER_HD constexpr bool has_mins(ScaleKind kind) {
  return kind == ScaleKind::half_min || kind == ScaleKind::half_zero || kind == ScaleKind::half_zero_128 ||
         kind == ScaleKind::six_bit_min || kind == ScaleKind::nibble_min;
}

/// Bytes of the scales of a chunk of n groups.
INFER_HD constexpr int64_t scale_bytes(ScaleKind kind, int64_t n) {
  switch (kind) {
    case ScaleKind::half:
      return n * 32;
    case ScaleKind::half_min:
    case ScaleKind::half_zero:
      return n * 64;
    case ScaleKind::half_zero_128:
      return 2 * 64;
    case ScaleKind::exponent:
      return n * 16;
    case ScaleKind::six_bit_8:
      return 32 + 96;
    case ScaleKind::six_bit_16:
      return 32 + 192;
    case ScaleKind::six_bit_min:
      return 64 + 192;
    case ScaleKind::nibble_min:
      return 64 + 256;
    case ScaleKind::signed_byte:
      return 32 + 256;
  }
  return 0;
}

/// Bytes of the codes of a group.
template <class F>
inline constexpr int64_t kCodeBytes = kTile* kGroup*(Packed<F>::low_bits + Packed<F>::high_bits) / 8;

template <class F>
INFER_HD constexpr int64_t chunk_bytes(int64_t groups) {
  return scale_bytes(Packed<F>::scales, groups) + groups * kCodeBytes<F>;
}

/// Bytes of a tile of `cols` columns, a multiple of 64.
template <class F>
INFER_HD constexpr int64_t tile_bytes(int64_t cols) {
  int64_t bytes = 0;
  if constexpr (F::block == 1) {
    bytes = (F::id == DType::BF16 ? cols + cols % 2 : cols) * kTile * static_cast<int64_t>(sizeof(typename F::Block));
  } else {
    const int64_t groups = cols / kGroup, rest = groups % kChunkGroups;
    bytes = groups / kChunkGroups * chunk_bytes<F>(kChunkGroups) + (rest ? chunk_bytes<F>(rest) : 0);
  }
  return (bytes + 63) / 64 * 64;
}

/// 32 activations of a token as the quantised formats want them: one cache line.
struct alignas(64) ActivationGroup {
  int32_t quad[8];  ///< 32 signed codes, 4 to a number
  float scale;      ///< x = scale * code
  int32_t bias;     ///< -128 * sum of the codes: what adding 128 to every weight code costs
  int32_t half_bias[2];
  float sum;  ///< scale * sum of the codes, for offsets
  float half_sum[2];
  int32_t unused;
};
static_assert(sizeof(ActivationGroup) == 64);

}  // namespace infer::cpu
