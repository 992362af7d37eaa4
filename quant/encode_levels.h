// Encoders of the formats whose codes stand for levels of uneven spacing, IQ4_NL IQ4_XS MXFP4, or for -1, 0, 1: TQ1_0
// TQ2_0. See lanes.h for the unnamed namespace.
#pragma once

#include "quant/encode_scaled.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

namespace infer {
namespace {

// --- IQ4_NL, IQ4_XS ---

constexpr float kLowestLevel = -127, kHighestLevel = 113, kLevelStep = 3;

/// What lies between two neighbours of the sixteen levels.
INFER_INLINE float level_border(int above) {
  return 0.5f * static_cast<float>(IQ4_NL::level(above - 1) + IQ4_NL::level(above));
}

struct NearestLevel {
  INFER_INLINE Lanes operator()(const Lanes& v) const {
    Lanes level = all(static_cast<float>(IQ4_NL::level(0)));
    for (int k = 1; k < 16; ++k)
      level = if_greater(v, all(level_border(k)), all(static_cast<float>(IQ4_NL::level(k))), level);
    return level;
  }
};

/// The same, numbered.
struct NearestLevelCode {
  INFER_INLINE Lanes operator()(const Lanes& v) const {
    Lanes code = all(0);
    for (int k = 1; k < 16; ++k) code = if_greater(v, all(level_border(k)), all(static_cast<float>(k)), code);
    return code;
  }
};

template <>
struct Encoder<IQ4_NL> {
  static bool encode(const float* weights, const float* importance, IQ4_NL::Block& out) {
    Source<32> s;
    take(weights, importance, s);
    const auto sums = search_scale<32>(s.x, s.w, ends_near(kLowestLevel, kHighestLevel, kLevelStep), 1, NearestLevel{});
    const Half d = half_scale(scale_of(sums), s.unit, s.inverse);
    out.d = d.bits;
    uint8_t q[32];
    choose_codes<32>(s.x, d.value, 0, 0, NearestLevelCode{}, q);
    put_nibbles(q, out.qs);
    return finite(d);
  }
};

template <>
struct Encoder<IQ4_XS> {
  static bool encode(const float* weights, const float* importance, IQ4_XS::Block& out) {
    ScaledBlock<8> b;
    if (!search_scaled_block(weights, importance, kLowestLevel, kHighestLevel, kLevelStep, 1, -32, NearestLevel{}, b))
      return false;
    out.d = b.d.bits;
    std::memset(out.scales_h, 0, sizeof out.scales_h);
    std::memset(out.scales_l, 0, sizeof out.scales_l);
    for (int j = 0; j < 8; ++j) {
      const int scale = b.scale[j] + 32;
      out.scales_l[j / 2] = static_cast<uint8_t>(out.scales_l[j / 2] | (scale & 15) << (4 * (j % 2)));
      out.scales_h[j / 4] = static_cast<uint8_t>(out.scales_h[j / 4] | scale >> 4 << (2 * (j % 4)));
      uint8_t q[32];
      choose_codes<32>(b.source.x + 32 * j, b.d.value * static_cast<float>(b.scale[j]), 0, 0, NearestLevelCode{}, q);
      put_nibbles(q, out.qs + 16 * j);
    }
    return true;
  }
};

// --- MXFP4 ---

INFER_INLINE float value_border(int above) {
  return 0.5f * static_cast<float>(MXFP4::twice_value(above - 1) + MXFP4::twice_value(above));
}

/// The magnitudes nearest to those of v, doubled, as MXFP4 keeps them: 0 1 2 3 4 6 8 12.
INFER_INLINE Lanes nearest_magnitude(const Lanes& v) {
  const Lanes size = size_of(v);
  Lanes value = all(0);
  for (int k = 1; k < 8; ++k)
    value = if_greater(size, all(value_border(k)), all(static_cast<float>(MXFP4::twice_value(k))), value);
  return value;
}

/// Their codes: 8 more where v is negative and not written as zero.
struct NearestValueCode {
  INFER_INLINE Lanes operator()(const Lanes& v) const {
    const Lanes size = size_of(v);
    Lanes code = all(0);
    for (int k = 1; k < 8; ++k) code = if_greater(size, all(value_border(k)), all(static_cast<float>(k)), code);
    return if_greater(all(-0.5f), v, code + all(8), code);
  }
};

/// The scale is a power of two: the one that just holds the largest weight, and those beside it, are compared.
template <>
struct Encoder<MXFP4> {
  static bool encode(const float* weights, const float* importance, MXFP4::Block& out) {
    Source<32> s;
    take(weights, importance, s);
    const int unit = static_cast<int>(float_bits(s.unit) >> 23);  // the largest weight is below 2^(unit - 126)
    int best_e = 0;
    float least_error = 3.4e38f;
    for (int e = unit < 3 ? 0 : unit - 3; e < unit && e < 255; ++e) {
      const float step = MXFP4::half_scale(e - unit + 127), inverse = 1.0f / step;
      Lanes errors = all(0);
      for (int i = 0; i < 32; i += kLanes) {
        const Lanes v = load(s.x + i), off = size_of(v) - nearest_magnitude(v * all(inverse)) * all(step);
        errors += load(s.w + i) * off * off;
      }
      const float error = sum(errors);
      if (error < least_error) least_error = error, best_e = e;
    }
    out.e = static_cast<uint8_t>(best_e);
    uint8_t q[32];
    choose_codes<32>(s.x, MXFP4::half_scale(best_e - unit + 127), 0, 0, NearestValueCode{}, q);
    put_nibbles(q, out.qs);
    return true;
  }
};

// --- TQ1_0, TQ2_0 ---

/// The scale for -1, 0, 1: weights of at least half of it become one. Sixteen beginnings down from the largest weight,
/// at which weights that are ternary already stay what they are; then the best scale for the codes and the best codes
/// for the scale in turn.
INFER_INLINE float search_ternary_scale(const Source<kSuper>& s) {
  constexpr NearestInteger nearest{-1, 1};
  const float largest = size_of(peak<kSuper>(s.x));
  if (largest == 0) return 0;
  const Lanes times = all(1) + numbers() * (all(0.2f) + numbers() * all(0.035f));  // 1 to 12
  const ScaleSums<Lanes> tried = try_scales<kSuper>(s.x, s.w, times * all(1.0f / largest), nearest);
  ScaleSums<float> best = pick(tried, index_of_largest(gain_of(tried)));
  for (int round = 0; round < 3; ++round) {
    const ScaleSums<float> sums = try_scale<kSuper>(s.x, s.w, best.qq / best.xq, nearest);
    if (!(gain_of(sums) > gain_of(best))) break;
    best = sums;
  }
  return scale_of(best);
}

INFER_INLINE bool encode_ternary(const float* weights, const float* importance, uint16_t& d, uint8_t q[kSuper]) {
  Source<kSuper> s;
  take(weights, importance, s);
  const Half half = half_scale(search_ternary_scale(s), s.unit, s.inverse);
  d = half.bits;
  choose_codes<kSuper>(s.x, half.value, 0, 1, NearestInteger{-1, 1}, q);
  return finite(half);
}

template <>
struct Encoder<TQ2_0> {
  static bool encode(const float* weights, const float* importance, TQ2_0::Block& out) {
    uint8_t q[kSuper];
    const bool fits = encode_ternary(weights, importance, out.d, q);
    put_group_pairs(q, 0, out.qs);
    return fits;
  }
};

template <>
struct Encoder<TQ1_0> {
  /// Five digits, the first counting most, as a fraction of 256 rounded up.
  INFER_INLINE static uint8_t byte_of(int a, int b, int c, int d, int e) {
    return static_cast<uint8_t>((((((a * 3 + b) * 3 + c) * 3 + d) * 3 + e) * 256 + 242) / 243);
  }
  static bool encode(const float* weights, const float* importance, TQ1_0::Block& out) {
    uint8_t q[kSuper];
    const bool fits = encode_ternary(weights, importance, out.d, q);
    for (int i = 0; i < 32; ++i) out.qs[i] = byte_of(q[i], q[i + 32], q[i + 64], q[i + 96], q[i + 128]);
    const uint8_t* late = q + 160;
    for (int i = 0; i < 16; ++i)
      out.qs[32 + i] = byte_of(late[i], late[i + 16], late[i + 32], late[i + 48], late[i + 64]);
    const uint8_t* last = q + 240;
    for (int i = 0; i < 4; ++i) out.qh[i] = byte_of(last[i], last[i + 4], last[i + 8], last[i + 12], 0);
    return fits;
  }
};

}  // namespace
}  // namespace infer
