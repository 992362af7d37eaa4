// Encoders of the formats with blocks of 256 weights in sub-blocks whose scales and minimums are integers times a scale
// of the block: Q2_K Q4_K Q5_K, weight = d * scale * q - dmin * min. Each sub-block is searched for by itself; then the
// minimums and the scales are made integers, the best of fifteen pairs each; then d and dmin are fitted once more to
// what came out. See lanes.h for the unnamed namespace.
#pragma once

#include "quant/encode_scaled.h"
#include "quant/q2_k.h"
#include "quant/q4_k.h"
#include "quant/q5_k.h"

namespace infer {
namespace {

template <int n_subs>
struct AffineBlock {
  Source<kSuper> source;
  RunSums run[n_subs];
  Half d{}, dmin{};
  float scale[n_subs], min[n_subs];  ///< the integers
  uint8_t q[kSuper];
};

/// The best integers near `scale` and `min` (two and one to either side) for sub-block j.
template <int n_subs>
INFER_INLINE AffineSums<float> choose_integers(AffineBlock<n_subs>& b, int j, float scale, float min, float high,
                                               float most_integer) {
  constexpr int sub = kSuper / n_subs;
  const Lanes scales = clamped(all(scale - 2) + numbers_modulo<5>(), 0, most_integer);
  const Lanes mins = clamped(all(min - 1) + numbers_over<5>(), 0, most_integer);
  const Lanes step = scales * all(b.d.value), offset = all(0) - mins * all(b.dmin.value);
  const auto sums = try_affines<sub>(b.source.x + j * sub, b.source.w + j * sub, inverse_or_zero(step), offset, high);
  const int best = index_of_largest(all(0) - error_of(sums, in_all_lanes(b.run[j]), step, offset));
  b.scale[j] = lane(scales, best);
  b.min[j] = lane(mins, best);
  return {lane(sums.q, best), lane(sums.qq, best), lane(sums.xq, best)};
}

/// d and dmin by least squares for the codes that the integers gave; kept where they lower the error.
template <int n_subs>
INFER_INLINE void refit(AffineBlock<n_subs>& b, const AffineSums<float> (&sums)[n_subs]) {
  float aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (int j = 0; j < n_subs; ++j) {
    aa += b.scale[j] * b.scale[j] * sums[j].qq;
    ab -= b.scale[j] * b.min[j] * sums[j].q;
    bb += b.min[j] * b.min[j] * b.run[j].w;
    xa += b.scale[j] * sums[j].xq;
    xb -= b.min[j] * b.run[j].x;
  }
  const float determinant = aa * bb - ab * ab;
  if (!(determinant > 1e-5f * aa * bb)) return;
  const Half d = half_scale((xa * bb - xb * ab) / determinant, b.source.unit, b.source.inverse);
  const Half dmin = half_scale((xb * aa - xa * ab) / determinant, b.source.unit, b.source.inverse);
  if (!finite(d) || !finite(dmin) || !(d.value > 0) || !(dmin.value >= 0)) return;
  const auto error = [&](float x, float y) { return x * (x * aa - 2 * xa) + y * (y * bb - 2 * xb) + 2 * x * y * ab; };
  if (error(d.value, dmin.value) < error(b.d.value, b.dmin.value)) b.d = d, b.dmin = dmin;
}

/// False: too large.
template <int n_subs>
INFER_INLINE bool search_affine_block(const float* weights, const float* importance, float high, float most_integer,
                                      float step, AffineBlock<n_subs>& b) {
  constexpr int sub = kSuper / n_subs;
  Source<kSuper>& s = b.source;
  take(weights, importance, s);
  float scale[n_subs], min[n_subs], curvature[n_subs];
  for (int j = 0; j < n_subs; ++j) {
    const float *x = s.x + j * sub, *w = s.w + j * sub;
    b.run[j] = sums_of_run<sub>(x, w);
    const Affine fit = search_affine<sub>(x, w, b.run[j], high, 0, spreads_near(high, step), 1);
    scale[j] = fit.scale;
    min[j] = -fit.offset;
    curvature[j] = b.run[j].w;
  }
  b.dmin = search_super_scale(min, curvature, 0, most_integer, s.unit, s.inverse);
  for (int j = 0; j < n_subs; ++j) {
    min[j] = clamped(rounded(min[j] * inverse_or_zero(b.dmin.value)), 0, most_integer);
    const float offset = -b.dmin.value * min[j];
    const auto sums = try_affine<sub>(s.x + j * sub, s.w + j * sub, inverse_or_zero(scale[j]), offset, high);
    if (sums.qq > 0) scale[j] = most((sums.xq - offset * sums.q) / sums.qq, 0.0f);
    curvature[j] = sums.qq;
  }
  b.d = search_super_scale(scale, curvature, 0, most_integer, s.unit, s.inverse);
  if (!finite(b.d) || !finite(b.dmin)) return false;
  AffineSums<float> sums[n_subs];
  for (int j = 0; j < n_subs; ++j)
    sums[j] = choose_integers(b, j, rounded(scale[j] * inverse_or_zero(b.d.value)), min[j], high, most_integer);
  refit(b, sums);
  for (int j = 0; j < n_subs; ++j) {
    choose_codes<sub>(s.x + j * sub, b.d.value * b.scale[j], -b.dmin.value * b.min[j], 0, NearestInteger{0, high},
                      b.q + j * sub);
  }
  return true;
}

/// Eight scales and eight minimums of six bits, the reverse of six_bit_scale() and six_bit_min().
INFER_INLINE void put_six_bits(const AffineBlock<8>& b, uint8_t out[12]) {
  for (int i = 0; i < 4; ++i) {
    const int scale = static_cast<int>(b.scale[i]), min = static_cast<int>(b.min[i]);
    const int late_scale = static_cast<int>(b.scale[i + 4]), late_min = static_cast<int>(b.min[i + 4]);
    out[i] = static_cast<uint8_t>(scale | late_scale >> 4 << 6);
    out[i + 4] = static_cast<uint8_t>(min | late_min >> 4 << 6);
    out[i + 8] = static_cast<uint8_t>((late_scale & 15) | (late_min & 15) << 4);
  }
}

INFER_INLINE void put_group_nibbles(const uint8_t q[kSuper], uint8_t out[128]) {
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i)
      out[32 * pair + i] = static_cast<uint8_t>((q[64 * pair + i] & 15) | q[64 * pair + 32 + i] << 4);
  }
}

template <>
struct Encoder<Q2_K> {
  static bool encode(const float* weights, const float* importance, Q2_K::Block& out) {
    AffineBlock<16> b;
    if (!search_affine_block(weights, importance, 3, 15, 0.09f, b)) return false;
    out.d = b.d.bits;
    out.dmin = b.dmin.bits;
    for (int j = 0; j < 16; ++j)
      out.scales[j] = static_cast<uint8_t>(static_cast<int>(b.scale[j]) | static_cast<int>(b.min[j]) << 4);
    put_group_pairs(b.q, 0, out.qs);
    return true;
  }
};

template <>
struct Encoder<Q4_K> {
  static bool encode(const float* weights, const float* importance, Q4_K::Block& out) {
    AffineBlock<8> b;
    if (!search_affine_block(weights, importance, 15, 63, 0.2f, b)) return false;
    out.d = b.d.bits;
    out.dmin = b.dmin.bits;
    put_six_bits(b, out.scales);
    put_group_nibbles(b.q, out.qs);
    return true;
  }
};

template <>
struct Encoder<Q5_K> {
  static bool encode(const float* weights, const float* importance, Q5_K::Block& out) {
    AffineBlock<8> b;
    if (!search_affine_block(weights, importance, 31, 63, 0.25f, b)) return false;
    out.d = b.d.bits;
    out.dmin = b.dmin.bits;
    put_six_bits(b, out.scales);
    put_group_nibbles(b.q, out.qs);
    put_group_bits(b.q, 4, out.qh);
    return true;
  }
};

}  // namespace
}  // namespace infer
