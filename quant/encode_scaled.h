// Encoders of the formats with blocks of 256 weights in sub-blocks whose scales are signed integers times a scale of
// the block: Q3_K Q6_K, and IQ4_XS, whose codes stand for uneven levels. Each sub-block is searched for by itself; then
// the scales are made integers, the best of sixteen each; then the block's own scale is fitted once more to what came
// out. See lanes.h for the unnamed namespace.
#pragma once

#include "quant/encode_simple.h"
#include "quant/q3_k.h"
#include "quant/q6_k.h"

namespace infer {
namespace {

constexpr int kSuper = 256;

template <int n_subs>
struct ScaledBlock {
  Source<kSuper> source;
  Half d{};
  int scale[n_subs];  ///< the integers
};

/// `low`, `high`: the outermost codes; `least_integer`: the integers run from it to -it - 1. False: too large.
template <int n_subs, class Nearest>
INFER_INLINE bool search_scaled_block(const float* weights, const float* importance, float low, float high, float step,
                                      int rounds, float least_integer, Nearest nearest, ScaledBlock<n_subs>& b) {
  constexpr int sub = kSuper / n_subs;
  Source<kSuper>& s = b.source;
  take(weights, importance, s);
  float scale[n_subs], curvature[n_subs];
  for (int j = 0; j < n_subs; ++j) {
    const auto sums = search_scale<sub>(s.x + j * sub, s.w + j * sub, ends_near(low, high, step), rounds, nearest);
    scale[j] = scale_of(sums);
    curvature[j] = sums.qq;
  }
  b.d = search_super_scale(scale, curvature, least_integer, -least_integer - 1, s.unit, s.inverse);
  if (!finite(b.d)) return false;
  float xa = 0, aa = 0;
  for (int j = 0; j < n_subs; ++j) {
    const float middle = rounded(scale[j] * inverse_or_zero(b.d.value));
    const float begin = clamped(middle - 8, least_integer, -least_integer - kLanes);
    const Lanes scales = (all(begin) + numbers()) * all(b.d.value);
    const auto sums = try_scales<sub>(s.x + j * sub, s.w + j * sub, inverse_or_zero(scales), nearest);
    const Lanes gain = scales * (all(2) * sums.xq - scales * sums.qq);
    const int best = index_of_largest(gain);
    const float integer = begin + static_cast<float>(best);
    b.scale[j] = static_cast<int>(integer);
    xa += integer * lane(sums.xq, best);
    aa += integer * integer * lane(sums.qq, best);
  }
  if (!(aa > 0)) return true;
  const Half fitted = half_scale(xa / aa, s.unit, s.inverse);
  const auto error = [&](float d) { return d * (d * aa - 2 * xa); };
  if (finite(fitted) && error(fitted.value) < error(b.d.value)) b.d = fitted;
  return true;
}

/// Bits `shift` and `shift` + 1 of the codes, four groups to 32 bytes.
INFER_INLINE void put_group_pairs(const uint8_t q[kSuper], int shift, uint8_t out[64]) {
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 32; ++i) {
      const uint8_t* of = q + 128 * half + i;
      out[32 * half + i] = static_cast<uint8_t>((of[0] >> shift & 3) | (of[32] >> shift & 3) << 2 |
                                                (of[64] >> shift & 3) << 4 | (of[96] >> shift & 3) << 6);
    }
  }
}

/// Bit `shift` of the codes, eight groups to 32 bytes.
INFER_INLINE void put_group_bits(const uint8_t q[kSuper], int shift, uint8_t out[32]) {
  std::memset(out, 0, 32);
  for (int group = 0; group < 8; ++group) {
    for (int i = 0; i < 32; ++i) out[i] = static_cast<uint8_t>(out[i] | (q[32 * group + i] >> shift & 1) << group);
  }
}

template <>
struct Encoder<Q3_K> {
  static bool encode(const float* weights, const float* importance, Q3_K::Block& out) {
    constexpr NearestInteger nearest{-4, 3};
    ScaledBlock<16> b;
    if (!search_scaled_block(weights, importance, -4, 3, 0.25f, 0, -32, nearest, b)) return false;
    out.d = b.d.bits;
    std::memset(out.scales, 0, sizeof out.scales);
    uint8_t q[kSuper];
    for (int j = 0; j < 16; ++j) {
      const int scale = b.scale[j] + 32;
      out.scales[j % 8] = static_cast<uint8_t>(out.scales[j % 8] | (scale & 15) << (4 * (j / 8)));
      out.scales[8 + j % 4] = static_cast<uint8_t>(out.scales[8 + j % 4] | scale >> 4 << (2 * (j / 4)));
      choose_codes<16>(b.source.x + 16 * j, b.d.value * static_cast<float>(b.scale[j]), 0, 4, nearest, q + 16 * j);
    }
    put_group_pairs(q, 0, out.qs);
    put_group_bits(q, 2, out.hmask);
    return true;
  }
};

template <>
struct Encoder<Q6_K> {
  static bool encode(const float* weights, const float* importance, Q6_K::Block& out) {
    constexpr NearestInteger nearest{-32, 31};
    ScaledBlock<16> b;
    if (!search_scaled_block(weights, importance, -32, 31, 0.35f, 0, -128, nearest, b)) return false;
    out.d = b.d.bits;
    uint8_t q[kSuper];
    for (int j = 0; j < 16; ++j) {
      out.scales[j] = static_cast<int8_t>(b.scale[j]);
      choose_codes<16>(b.source.x + 16 * j, b.d.value * static_cast<float>(b.scale[j]), 0, 32, nearest, q + 16 * j);
    }
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 64; ++i) {
        const uint8_t* of = q + 128 * half + i;
        out.ql[64 * half + i] = static_cast<uint8_t>((of[0] & 15) | of[64] << 4);
      }
    }
    put_group_pairs(q, 4, out.qh);
    return true;
  }
};

}  // namespace
}  // namespace infer
