// What the encoders share: blocks brought to one size, sums over codes, and the search for the scale (and the offset)
// that a run of weights is best written with. Error is always the sum of importance * (weight - written)^2. Given the
// codes the best scale follows by least squares, so a search tries sixteen scales near largest weight / largest code,
// one in each lane, and takes the best scale of the best codes. It knows nothing of formats. See lanes.h for the
// unnamed namespace.
#pragma once

#include "quant/half.h"
#include "quant/lanes.h"

namespace infer {
namespace {

/// A block as the searches want it: weights divided by a power of two so that the largest is in [1, 2) and nothing
/// overflows or drowns on the way, importances between 1e-5 and 1.
template <int n>
struct Source {
  alignas(64) float x[n];
  alignas(64) float w[n];
  float unit;     ///< weight = x * unit
  float inverse;  ///< 1 / unit
};

/// The power of two that the largest weight, of this size, is divided by. Below the smallest normal float, too small
/// for any scale, everything counts as zero.
struct Unit {
  float unit, inverse, factor;
};
INFER_INLINE Unit unit_of(float size) {
  const bool any = size >= 0x1p-126f;
  const uint32_t exponent = any ? float_bits(size) >> 23 : 127;
  // The inverse of 2^127 is subnormal, which nothing depends on: such weights are too large for every scale.
  const float inverse = exponent >= 254 ? 0x1p-127f : bits_float((254 - exponent) << 23);
  return {bits_float(exponent << 23), inverse, any ? inverse : 0.0f};
}

/// `importance` may be null: then all weights count alike. All are finite, the caller has seen to it. Says whether
/// importances count: zeros do not.
template <int n>
INFER_INLINE bool take(const float* weights, const float* importance, Source<n>& out) {
  Lanes largest = all(0);
  for (int i = 0; i < n; i += kLanes) largest = most(largest, size_of(load(weights + i)));
  const Unit unit = unit_of(largest_lane(largest));
  out.unit = unit.unit, out.inverse = unit.inverse;
  for (int i = 0; i < n; i += kLanes) store(out.x + i, load(weights + i) * all(unit.factor));
  float share = 0;
  if (importance) {
    Lanes heaviest = all(0);
    for (int i = 0; i < n; i += kLanes) heaviest = most(heaviest, load(importance + i));
    share = inverse_or_zero(largest_lane(heaviest));
  }
  const bool weighted = share > 0 && share < 1e38f;
  for (int i = 0; i < n; i += kLanes)
    store(out.w + i, weighted ? most(load(importance + i) * all(share), all(1e-5f)) : all(1.0f));
  return weighted;
}

/// A scale as f16 would keep it, and what that means in the source's unit.
struct Half {
  uint16_t bits;
  float value;
};
INFER_INLINE Half half_scale(float scale, float unit, float inverse) {
  const uint16_t bits = f32_to_f16(scale * unit);
  return {bits, f16_to_f32(bits) * inverse};
}
/// Whether a scale overflowed: the weights are too large for the format.
INFER_INLINE bool finite(Half half) { return (half.bits & 0x7c00) != 0x7c00; }

// --- weight = scale * code, codes low..high ---

/// Of importance * weight * code and importance * code^2, for one choice of codes (float) or for sixteen (Lanes). For
/// these codes scale() is best, it takes gain() off the error; another scale leaves error(scale), less the sum of
/// importance * weight^2.
template <class T>
struct ScaleSums {
  T xq, qq;
};
INFER_INLINE float scale_of(const ScaleSums<float>& s) { return s.qq > 0 ? s.xq / s.qq : 0; }
INFER_INLINE float gain_of(const ScaleSums<float>& s) { return s.qq > 0 ? s.xq * s.xq / s.qq : 0; }
INFER_INLINE Lanes gain_of(const ScaleSums<Lanes>& s) { return s.xq * s.xq / most(s.qq, all(1e-30f)); }
INFER_INLINE float error_of(const ScaleSums<float>& s, float scale) { return scale * (scale * s.qq - 2 * s.xq); }
INFER_INLINE ScaleSums<float> pick(const ScaleSums<Lanes>& s, int i) { return {lane(s.xq, i), lane(s.qq, i)}; }

/// The sums for the codes nearest to x * inverse, sixteen inverses at once. `nearest` maps Lanes to codes.
template <int n, class Nearest>
INFER_INLINE ScaleSums<Lanes> try_scales(const float* x, const float* w, const Lanes& inverse, Nearest nearest) {
  ScaleSums<Lanes> s{all(0), all(0)};
  for (int i = 0; i < n; ++i) {
    const Lanes v = all(x[i]), q = nearest(v * inverse), wq = all(w[i]) * q;
    s.xq += wq * v;
    s.qq += wq * q;
  }
  return s;
}

/// The same for one inverse, sixteen weights at once.
template <int n, class Nearest>
INFER_INLINE ScaleSums<float> try_scale(const float* x, const float* w, float inverse, Nearest nearest) {
  ScaleSums<Lanes> s{all(0), all(0)};
  for (int i = 0; i < n; i += kLanes) {
    const Lanes v = load(x + i), q = nearest(v * all(inverse)), wq = load(w + i) * q;
    s.xq += wq * v;
    s.qq += wq * q;
  }
  return {sum(s.xq), sum(s.qq)};
}

/// The weight of largest size, with its sign.
template <int n>
INFER_INLINE float peak(const float* x) {
  Lanes low = all(0), high = all(0);
  for (int i = 0; i < n; i += kLanes) low = least(low, load(x + i)), high = most(high, load(x + i));
  const float least_x = -largest_lane(all(0) - low), most_x = largest_lane(high);
  return -least_x > most_x ? least_x : most_x;
}

/// Codes of the largest weight that are worth trying: `each` near `low`, as many near `high`, `step` apart; then lanes
/// that repeat some of these.
template <int each = 8>
INFER_INLINE Lanes ends_near(float low, float high, float step) {
  const Lanes end = all(low) + least(numbers_over<each>(), all(1)) * all(high - low);
  return end + (numbers_modulo<each>() - all(0.5f * (each - 1))) * all(step);
}

/// The sums of the best scale found, of those that put the largest weight at `ends`; then `rounds` times the best scale
/// for the codes and the best codes for the scale.
template <int n, class Nearest>
INFER_INLINE ScaleSums<float> search_scale(const float* x, const float* w, const Lanes& ends, int rounds,
                                           Nearest nearest) {
  const float largest = peak<n>(x);
  if (largest == 0) return {0, 0};
  const Lanes inverse = ends * all(1.0f / largest);
  const ScaleSums<Lanes> tried = try_scales<n>(x, w, inverse, nearest);
  ScaleSums<float> best = pick(tried, index_of_largest(gain_of(tried)));
  for (int round = 0; round < rounds && best.qq > 0 && best.xq != 0; ++round) {
    const ScaleSums<float> sums = try_scale<n>(x, w, best.qq / best.xq, nearest);
    if (!(gain_of(sums) > gain_of(best))) break;
    best = sums;
  }
  return best;
}

// --- weight = scale * code + offset, codes 0..high ---

/// Of importance * code, * code^2, * weight * code for one choice of codes or sixteen.
template <class T>
struct AffineSums {
  T q, qq, xq;
};
/// Of importance and importance * weight: the same for all codes.
struct RunSums {
  float w, x;
};
/// The same of sixteen runs.
struct RunLanes {
  Lanes w, x;
};
INFER_INLINE RunLanes in_all_lanes(const RunSums& run) { return {all(run.w), all(run.x)}; }
struct Affine {
  float scale, offset;
};

template <int n>
INFER_INLINE RunSums sums_of_run(const float* x, const float* w) {
  Lanes ws = all(0), xs = all(0);
  for (int i = 0; i < n; i += kLanes) ws += load(w + i), xs += load(w + i) * load(x + i);
  return {sum(ws), sum(xs)};
}

template <int n>
INFER_INLINE AffineSums<Lanes> try_affines(const float* x, const float* w, const Lanes& inverse, const Lanes& offset,
                                           float high) {
  AffineSums<Lanes> s{all(0), all(0), all(0)};
  for (int i = 0; i < n; ++i) {
    const Lanes v = all(x[i]), q = clamped(rounded((v - offset) * inverse), 0, high), wq = all(w[i]) * q;
    s.q += wq;
    s.qq += wq * q;
    s.xq += wq * v;
  }
  return s;
}

template <int n>
INFER_INLINE AffineSums<float> try_affine(const float* x, const float* w, float inverse, float offset, float high) {
  AffineSums<Lanes> s{all(0), all(0), all(0)};
  for (int i = 0; i < n; i += kLanes) {
    const Lanes v = load(x + i), q = clamped(rounded((v - all(offset)) * all(inverse)), 0, high), wq = load(w + i) * q;
    s.q += wq;
    s.qq += wq * q;
    s.xq += wq * v;
  }
  return {sum(s.q), sum(s.qq), sum(s.xq)};
}

/// The error of a scale and offset with the codes that the sums are of, less the sum of importance * weight^2.
INFER_INLINE float error_of(const AffineSums<float>& s, const RunSums& run, float scale, float offset) {
  return scale * (scale * s.qq - 2 * (s.xq - offset * s.q)) + offset * (offset * run.w - 2 * run.x);
}
INFER_INLINE Lanes error_of(const AffineSums<Lanes>& s, const RunLanes& run, const Lanes& scale, const Lanes& offset) {
  return scale * (scale * s.qq - all(2) * (s.xq - offset * s.q)) + offset * (offset * run.w - all(2) * run.x);
}

/// Least squares for sixteen scales and offsets; an offset above `most_offset` is held there. Where all codes are equal
/// only a scale can be told: the offset is held at 0 (`most_offset` is never less).
INFER_INLINE void solve(const AffineSums<Lanes>& s, const RunLanes& run, float most_offset, Lanes& scale,
                        Lanes& offset) {
  const Lanes &w = run.w, &x = run.x;
  const Lanes determinant = w * s.qq - s.q * s.q, enough = w * s.qq * all(1e-5f);
  const Lanes share = all(1.0f) / most(determinant, all(1e-30f));
  const Lanes free_offset = if_greater(determinant, enough, (s.qq * x - s.q * s.xq) * share, all(0));
  offset = least(free_offset, all(most_offset));
  const Lanes held = (s.xq - offset * s.q) / most(s.qq, all(1e-30f));
  const Lanes free_scale = if_greater(determinant, enough, (w * s.xq - s.q * x) * share, held);
  scale = if_greater(free_offset, all(most_offset), held, free_scale);
}

/// How many codes a run may be spread over: `count` around `high`, `step` apart; then lanes that repeat the last.
template <int count = kLanes>
INFER_INLINE Lanes spreads_near(float high, float step) {
  return all(high) + (least(numbers(), all(count - 1)) - all(0.5f * (count - 1))) * all(step);
}

/// The best scale and offset found, of offsets up to `most_offset`: scales that spread the weights over `spreads` of
/// the codes 0..high; then, `rounds` times, sixteen near the best.
template <int n>
INFER_INLINE Affine search_affine(const float* x, const float* w, const RunSums& run, float high, float most_offset,
                                  const Lanes& spreads, int rounds) {
  Lanes low = load(x), top = load(x);
  for (int i = kLanes; i < n; i += kLanes) low = least(low, load(x + i)), top = most(top, load(x + i));
  const float most_x = largest_lane(top), least_x = least(-largest_lane(all(0) - low), most_offset);
  const float range = most_x - least_x;
  if (range <= 0) return {0, least_x};
  Lanes inverse = spreads * all(1.0f / range), offset = all(least_x);
  Affine best{0, least(run.x / run.w, most_offset)};
  float least_error = best.offset * (best.offset * run.w - 2 * run.x);
  for (int round = 0;; ++round) {
    Lanes scale, fitted;
    const AffineSums<Lanes> sums = try_affines<n>(x, w, inverse, offset, high);
    solve(sums, in_all_lanes(run), most_offset, scale, fitted);
    const Lanes error = error_of(sums, in_all_lanes(run), scale, fitted);
    const int i = index_of_largest(all(0) - error);
    if (!(lane(error, i) < least_error)) return best;
    least_error = lane(error, i);
    best = {lane(scale, i), lane(fitted, i)};
    if (round == rounds || !(best.scale > 0)) return best;
    // Next to it: four scales, each with four offsets.
    inverse = (all(1) + (numbers_modulo<4>() - all(1.5f)) * all(0.012f)) * all(1.0f / best.scale);
    offset = all(best.offset) + (numbers_over<4>() - all(1.5f)) * all(0.15f * best.scale);
  }
}

// --- scales that are integers times a scale of their own ---

/// The scale of `count` scales, kept as f16, whose integers run from low to high: of those that put the scale of
/// largest size at low (at high, when low is 0) or a little beside it, the one with the least sum of curvature *
/// error^2.
template <int count>
INFER_INLINE Half search_super_scale(const float (&scales)[count], const float (&curvature)[count], float low,
                                     float high, float unit, float inverse) {
  float largest = 0;
  for (const float s : scales) largest = size_of(s) > size_of(largest) ? s : largest;
  if (largest == 0) return {0, 0};
  alignas(64) float d[kLanes], share[kLanes];
  Half halves[kLanes];
  for (int t = 0; t < kLanes; ++t) {
    const float end = (low < 0 ? low : high) + 0.25f * (static_cast<float>(t) - 8);
    halves[t] = half_scale(largest / end, unit, inverse);
    d[t] = halves[t].value;
    share[t] = inverse_or_zero(d[t]);
    if (!finite(halves[t])) return halves[t];
  }
  Lanes error = all(0);
  for (int i = 0; i < count; ++i) {
    const Lanes off = all(scales[i]) - load(d) * clamped(rounded(all(scales[i]) * load(share)), low, high);
    error += all(curvature[i]) * off * off;
  }
  return halves[index_of_largest(all(0) - error)];
}

}  // namespace
}  // namespace infer
