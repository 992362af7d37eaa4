// Encoders of the formats with one scale, or a scale and an offset, for 32 weights: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0.
// See lanes.h for the unnamed namespace.
#pragma once

#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q8_0.h"
#include "quant/scale_search.h"

namespace infer {
namespace {

/// How an encoder is found: Encoder<F>::encode(weights, importance, block) writes F::block weights. False when they are
/// too large for the format; the weights are finite.
template <class F>
struct Encoder;

/// Whole numbers from low to high.
struct NearestInteger {
  float low, high;
  INFER_INLINE Lanes operator()(const Lanes& v) const { return clamped(rounded(v), low, high); }
};

/// Codes of n weights (x - offset) / scale, `zero` added.
template <int n, class Nearest>
INFER_INLINE void choose_codes(const float* x, float scale, float offset, float zero, Nearest nearest, uint8_t* q) {
  const float inverse = inverse_or_zero(scale);
  for (int i = 0; i < n; i += kLanes)
    store_bytes(q + i, nearest((load(x + i) - all(offset)) * all(inverse)) + all(zero));
}

INFER_INLINE void put_nibbles(const uint8_t q[32], uint8_t out[16]) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 16] << 4);
}

INFER_INLINE void put_fifth_bits(const uint8_t q[32], uint8_t out[4]) {
#if defined(__x86_64__)
  for (int i = 0; i < 2; ++i) {
    __m128i codes;
    std::memcpy(&codes, q + 16 * i, sizeof codes);
    const auto bits = static_cast<uint16_t>(_mm_movemask_epi8(_mm_slli_epi16(codes, 3)));
    std::memcpy(out + 2 * i, &bits, sizeof bits);
  }
#else
  for (int i = 0; i < 4; ++i) {
    int byte = 0;
    for (int k = 0; k < 8; ++k) byte |= (q[8 * i + k] >> 4 & 1) << k;
    out[i] = static_cast<uint8_t>(byte);
  }
#endif
}

/// Where codes of 4 bits and of 5 go in a block.
struct PutNibbles {
  template <class Block>
  INFER_INLINE void operator()(const uint8_t q[32], Block& out) const {
    put_nibbles(q, out.qs);
  }
};
struct PutFiveBits {
  template <class Block>
  INFER_INLINE void operator()(const uint8_t q[32], Block& out) const {
    put_nibbles(q, out.qs);
    put_fifth_bits(q, out.qh);
  }
};

// What the searches try, in codes; any offset will do. Where all weights count alike eight do nearly as well as sixteen
// (0.5 % more error), in half the time.
constexpr int kEvenTried = 8;
constexpr float kAnyOffset = 1e30f;
template <int low>
INFER_INLINE Lanes scaled_ends(bool weighted) {
  return weighted ? ends_near(low, -low - 1, 0.28f) : ends_near<kEvenTried / 2>(low, -low - 1, 0.4f);
}
template <int high>
INFER_INLINE Lanes affine_spreads(bool weighted) {
  return weighted ? spreads_near(high, 0.13f) : spreads_near<kEvenTried>(high, 0.3f);
}

template <int low>
INFER_INLINE bool encode_scaled(const float* weights, const float* importance, uint16_t& d, uint8_t q[32]) {
  constexpr NearestInteger nearest{low, -low - 1};
  Source<32> s;
  const bool weighted = take(weights, importance, s);
  const float scale = scale_of(search_scale<32>(s.x, s.w, scaled_ends<low>(weighted), 0, nearest));
  const Half half = half_scale(scale, s.unit, s.inverse);
  d = half.bits;
  choose_codes<32>(s.x, half.value, 0, -low, nearest, q);
  return finite(half);
}

template <int high>
INFER_INLINE bool encode_affine(const float* weights, const float* importance, uint16_t& d, uint16_t& m,
                                uint8_t q[32]) {
  Source<32> s;
  const bool weighted = take(weights, importance, s);
  const RunSums run = sums_of_run<32>(s.x, s.w);
  const Affine fit =
      search_affine<32>(s.x, s.w, run, high, kAnyOffset, affine_spreads<high>(weighted), weighted ? 1 : 0);
  const Half scale = half_scale(fit.scale, s.unit, s.inverse), offset = half_scale(fit.offset, s.unit, s.inverse);
  d = scale.bits;
  m = offset.bits;
  choose_codes<32>(s.x, scale.value, offset.value, 0, NearestInteger{0, high}, q);
  return finite(scale) && finite(offset);
}

template <>
struct Encoder<Q4_0> {
  static bool encode(const float* weights, const float* importance, Q4_0::Block& out) {
    uint8_t q[32];
    const bool fits = encode_scaled<-8>(weights, importance, out.d, q);
    PutNibbles{}(q, out);
    return fits;
  }
};

template <>
struct Encoder<Q5_0> {
  static bool encode(const float* weights, const float* importance, Q5_0::Block& out) {
    uint8_t q[32];
    const bool fits = encode_scaled<-16>(weights, importance, out.d, q);
    PutFiveBits{}(q, out);
    return fits;
  }
};

template <>
struct Encoder<Q4_1> {
  static bool encode(const float* weights, const float* importance, Q4_1::Block& out) {
    uint8_t q[32];
    const bool fits = encode_affine<15>(weights, importance, out.d, out.m, q);
    PutNibbles{}(q, out);
    return fits;
  }
};

template <>
struct Encoder<Q5_1> {
  static bool encode(const float* weights, const float* importance, Q5_1::Block& out) {
    uint8_t q[32];
    const bool fits = encode_affine<31>(weights, importance, out.d, out.m, q);
    PutFiveBits{}(q, out);
    return fits;
  }
};

/// Eight bits leave nothing to search for: the scale of the largest weight, as everybody writes it.
template <>
struct Encoder<Q8_0> {
  static bool encode(const float* weights, const float*, Q8_0::Block& out) {
    Q8_0::encode(weights, out);
    return (out.d & 0x7c00) != 0x7c00;
  }
};

}  // namespace
}  // namespace infer
