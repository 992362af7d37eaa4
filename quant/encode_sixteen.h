// The searches of Q4_0, Q5_0, Q4_1 and Q5_1 for sixteen blocks at once, whose weights all count alike: lane b is block
// b. One block at a time is a chain of steps that each wait for the one before (largest weight, best scale, its f16,
// codes); here sixteen go side by side and nothing is summed across lanes. Every block gets the bytes that its own
// encoder in encode_simple.h gives it, operation for operation. See lanes.h for the unnamed namespace.
#pragma once

#include "quant/encode_simple.h"

namespace infer {
namespace {

constexpr int kBlocks = kLanes;
constexpr int kTogether = kParts == 1 ? 4 : 2;  // scales tried in one pass over the weights, as registers allow

/// Source<32> of sixteen blocks.
struct Sixteen {
  Lanes x[32];
  alignas(64) float unit[kBlocks], inverse[kBlocks];
};

INFER_INLINE void take_sixteen(const float* weights, Sixteen& out) {
  load_across(weights, out.x);
  Lanes largest = all(0);
  for (const Lanes& x : out.x) largest = most(largest, size_of(x));
  alignas(64) float size[kBlocks], factor[kBlocks];
  store(size, largest);
  for (int b = 0; b < kBlocks; ++b) {
    const Unit unit = unit_of(size[b]);
    out.unit[b] = unit.unit, out.inverse[b] = unit.inverse, factor[b] = unit.factor;
  }
  for (Lanes& x : out.x) x = x * load(factor);
}

/// A scale or an offset of each block, as f16 keeps it.
struct Halves {
  uint16_t bits[kBlocks];
  Lanes value;
  bool all_finite = true;
  INFER_INLINE Halves(const Lanes& numbers, const Sixteen& s) {
    store_halves(bits, numbers * load(s.unit));
    value = load_halves(bits) * load(s.inverse);
    for (const uint16_t half : bits) all_finite &= (half & 0x7c00) != 0x7c00;
  }
};

template <class Nearest>
INFER_INLINE void choose_codes_of_sixteen(const Sixteen& s, const Lanes& scale, const Lanes& offset, float zero,
                                          Nearest nearest, uint8_t (&codes)[kBlocks][32]) {
  const Lanes inverse = inverse_or_zero(scale);
  uint8_t q[32][kBlocks];
  for (int i = 0; i < 32; ++i) store_bytes(q[i], nearest((s.x[i] - offset) * inverse) + all(zero));
  transpose_bytes(q, codes);
}

/// False when a scale overflows; so with all functions here that answer.
template <int low, class Block, class Put>
INFER_INLINE bool encode_scaled_sixteen(const float* weights, Block* out, Put put) {
  constexpr NearestInteger nearest{low, -low - 1};
  Sixteen s;
  take_sixteen(weights, s);
  Lanes least_x = all(0), most_x = all(0);
  for (const Lanes& x : s.x) least_x = least(least_x, x), most_x = most(most_x, x);
  const Lanes largest = if_greater(all(0) - least_x, most_x, least_x, most_x);
  const Lanes share = all(1) / largest;  // of a block of zeros infinite, which comes to nothing below
  alignas(64) float ends[kLanes];
  store(ends, scaled_ends<low>(false));
  ScaleSums<Lanes> best{all(0), all(0)};
  Lanes best_gain = all(-1);
  for (int t = 0; t < kEvenTried; t += kTogether) {
    Lanes inverse[kTogether];
    ScaleSums<Lanes> sums[kTogether];
    for (int j = 0; j < kTogether; ++j) inverse[j] = all(ends[t + j]) * share, sums[j] = {all(0), all(0)};
    for (const Lanes& x : s.x) {
      for (int j = 0; j < kTogether; ++j) {
        const Lanes q = nearest(x * inverse[j]);
        sums[j].xq += q * x;
        sums[j].qq += q * q;
      }
    }
    for (int j = 0; j < kTogether; ++j) {
      const Lanes gain = gain_of(sums[j]);
      best.xq = if_greater(gain, best_gain, sums[j].xq, best.xq);
      best.qq = if_greater(gain, best_gain, sums[j].qq, best.qq);
      best_gain = most(gain, best_gain);
    }
  }
  const Lanes scale =
      if_greater(size_of(largest), all(0), if_greater(best.qq, all(0), best.xq / best.qq, all(0)), all(0));
  const Halves d(scale, s);
  uint8_t codes[kBlocks][32];
  choose_codes_of_sixteen(s, d.value, all(0), -low, nearest, codes);
  for (int b = 0; b < kBlocks; ++b) {
    out[b].d = d.bits[b];
    put(codes[b], out[b]);
  }
  return d.all_finite;
}

/// The sum of each block in the order of sums_of_run().
INFER_INLINE Lanes sum_of_each(const Lanes (&x)[32]) {
  Lanes s[16];
  for (int i = 0; i < 16; ++i) s[i] = (all(0) + x[i]) + x[i + 16];
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

template <int high, class Block, class Put>
INFER_INLINE bool encode_affine_sixteen(const float* weights, Block* out, Put put) {
  Sixteen s;
  take_sixteen(weights, s);
  Lanes most_below = all(0) - s.x[0], most_x = s.x[0];
  for (const Lanes& x : s.x) most_below = most(most_below, all(0) - x), most_x = most(most_x, x);
  const Lanes least_x = all(-1) * most_below, range = most_x - least_x, share = all(1) / range;
  const RunLanes run{all(32), sum_of_each(s.x)};
  alignas(64) float ends[kLanes];
  store(ends, affine_spreads<high>(false));
  Lanes scale = all(0), offset = run.x / run.w, least_error = offset * (offset * run.w - all(2) * run.x);
  for (int t = 0; t < kEvenTried; t += kTogether) {
    Lanes inverse[kTogether];
    AffineSums<Lanes> sums[kTogether];
    for (int j = 0; j < kTogether; ++j) inverse[j] = all(ends[t + j]) * share, sums[j] = {all(0), all(0), all(0)};
    for (const Lanes& x : s.x) {
      for (int j = 0; j < kTogether; ++j) {
        const Lanes q = least(rounded((x - least_x) * inverse[j]), all(high));
        sums[j].q += q;
        sums[j].qq += q * q;
        sums[j].xq += q * x;
      }
    }
    for (int j = 0; j < kTogether; ++j) {
      Lanes fitted_scale, fitted_offset;
      solve(sums[j], run, kAnyOffset, fitted_scale, fitted_offset);
      const Lanes error = error_of(sums[j], run, fitted_scale, fitted_offset);
      scale = if_greater(least_error, error, fitted_scale, scale);
      offset = if_greater(least_error, error, fitted_offset, offset);
      least_error = if_greater(least_error, error, error, least_error);
    }
  }
  scale = if_greater(range, all(0), scale, all(0));
  offset = if_greater(range, all(0), offset, least_x);
  const Halves d(scale, s), m(offset, s);
  uint8_t codes[kBlocks][32];
  choose_codes_of_sixteen(s, d.value, m.value, 0, NearestInteger{0, high}, codes);
  for (int b = 0; b < kBlocks; ++b) {
    out[b].d = d.bits[b];
    out[b].m = m.bits[b];
    put(codes[b], out[b]);
  }
  return d.all_finite && m.all_finite;
}

/// encode(weights, blocks) writes sixteen blocks of F, whose weights are finite.
template <class F>
struct SixteenEncoder;

template <>
struct SixteenEncoder<Q4_0> {
  static bool encode(const float* weights, Q4_0::Block* out) {
    return encode_scaled_sixteen<-8>(weights, out, PutNibbles{});
  }
};
template <>
struct SixteenEncoder<Q5_0> {
  static bool encode(const float* weights, Q5_0::Block* out) {
    return encode_scaled_sixteen<-16>(weights, out, PutFiveBits{});
  }
};
template <>
struct SixteenEncoder<Q4_1> {
  static bool encode(const float* weights, Q4_1::Block* out) {
    return encode_affine_sixteen<15>(weights, out, PutNibbles{});
  }
};
template <>
struct SixteenEncoder<Q5_1> {
  static bool encode(const float* weights, Q5_1::Block* out) {
    return encode_affine_sixteen<31>(weights, out, PutFiveBits{});
  }
};

}  // namespace
}  // namespace infer
