// Sixteen floats at once, for the encoders: one AVX-512 register, two of AVX2 or four of SSE. All levels give the same
// bits, since lanes are summed in one order and nothing is fused. Everything is in an unnamed namespace: the encoders
// are compiled once for each level of the CPU (encode.cpp, encode_avx2.cpp, encode_avx512.cpp), and no copy may serve
// for another. That is also why nothing here calls the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "quant/half.h"

namespace infer {
namespace {

#define INFER_INLINE inline __attribute__((always_inline))

constexpr int kLanes = 16;

#if defined(__AVX512F__)
using Part = __m512;
// With a mask of all lanes, since g++ 12 warns of the undefined operand inside the plain forms.
INFER_INLINE Part least_of(Part a, Part b) { return _mm512_maskz_min_ps(0xffff, a, b); }
INFER_INLINE Part most_of(Part a, Part b) { return _mm512_maskz_max_ps(0xffff, a, b); }
INFER_INLINE Part if_greater(Part a, Part b, Part yes, Part no) {
  return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes);
}
INFER_INLINE uint32_t equal_bits(Part a, Part b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
#elif defined(__AVX2__)
using Part = __m256;
INFER_INLINE Part least_of(Part a, Part b) { return _mm256_min_ps(a, b); }
INFER_INLINE Part most_of(Part a, Part b) { return _mm256_max_ps(a, b); }
INFER_INLINE Part if_greater(Part a, Part b, Part yes, Part no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
INFER_INLINE uint32_t equal_bits(Part a, Part b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
}
#elif defined(__x86_64__)
using Part = __m128;
INFER_INLINE Part least_of(Part a, Part b) { return _mm_min_ps(a, b); }
INFER_INLINE Part most_of(Part a, Part b) { return _mm_max_ps(a, b); }
INFER_INLINE Part if_greater(Part a, Part b, Part yes, Part no) {
  const Part greater = _mm_cmpgt_ps(a, b);
  return _mm_or_ps(_mm_and_ps(greater, yes), _mm_andnot_ps(greater, no));
}
INFER_INLINE uint32_t equal_bits(Part a, Part b) { return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpeq_ps(a, b))); }
#else
typedef float Part __attribute__((vector_size(16)));
INFER_INLINE Part least_of(Part a, Part b) { return a < b ? a : b; }
INFER_INLINE Part most_of(Part a, Part b) { return a > b ? a : b; }
INFER_INLINE Part if_greater(Part a, Part b, Part yes, Part no) { return a > b ? yes : no; }
INFER_INLINE uint32_t equal_bits(Part a, Part b) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= (a[i] == b[i] ? 1u : 0u) << i;
  return bits;
}
#endif

constexpr int kParts = kLanes * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(Part));

constexpr int kPartLanes = kLanes / kParts;

struct Lanes {
  Part part[kParts];
};

INFER_INLINE Lanes all(float x) {
  Lanes out;
  for (Part& p : out.part) p = Part{} + x;
  return out;
}
INFER_INLINE Lanes load(const float* x) {
  Lanes out;
  std::memcpy(&out, x, sizeof out);
  return out;
}
INFER_INLINE void store(float* x, const Lanes& v) { std::memcpy(x, &v, sizeof v); }

#define INFER_LANES(name, expression)                       \
  INFER_INLINE Lanes name(const Lanes& a, const Lanes& b) { \
    Lanes out;                                              \
    for (int i = 0; i < kParts; ++i) {                      \
      const Part x = a.part[i], y = b.part[i];              \
      out.part[i] = expression;                             \
    }                                                       \
    return out;                                             \
  }
INFER_LANES(operator+, x + y)
INFER_LANES(operator-, x - y)
INFER_LANES(operator*, x* y)
INFER_LANES(operator/, x / y)
INFER_LANES(least, least_of(x, y))
INFER_LANES(most, most_of(x, y))
#undef INFER_LANES

INFER_INLINE void operator+=(Lanes& a, const Lanes& b) { a = a + b; }
INFER_INLINE Lanes if_greater(const Lanes& a, const Lanes& b, const Lanes& yes, const Lanes& no) {
  Lanes out;
  for (int i = 0; i < kParts; ++i) out.part[i] = if_greater(a.part[i], b.part[i], yes.part[i], no.part[i]);
  return out;
}
INFER_INLINE Lanes size_of(const Lanes& v) { return most(v, all(0) - v); }
/// To the nearest whole number, ties to even, of |x| < 2^22: a sum with 1.5 * 2^23 has no fraction bits.
INFER_INLINE Lanes rounded(const Lanes& x) { return (x + all(12582912.0f)) - all(12582912.0f); }
INFER_INLINE Lanes clamped(const Lanes& x, float low, float high) { return least(most(x, all(low)), all(high)); }

/// Lane i holds i; i % d; i / d.
INFER_INLINE Lanes numbers() {
  static constexpr float kNumbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(kNumbers);
}
template <int d>
struct Divided {
  float rest[kLanes], whole[kLanes];
  constexpr Divided() : rest(), whole() {
    for (int i = 0; i < kLanes; ++i) rest[i] = static_cast<float>(i % d), whole[i] = static_cast<float>(i / d);
  }
};
template <int d>
constexpr Divided<d> kDivided;
template <int d>
INFER_INLINE Lanes numbers_modulo() {
  return load(kDivided<d>.rest);
}
template <int d>
INFER_INLINE Lanes numbers_over() {
  return load(kDivided<d>.whole);
}

INFER_INLINE Lanes inverse_or_zero(const Lanes& v) { return if_greater(size_of(v), all(0), all(1) / v, all(0)); }

// Across lanes: lane i meets lane i + 8, then i + 4, i + 2, i + 1, at every level of the CPU.

#if defined(__x86_64__)
template <class Combine>
INFER_INLINE float folded(const Lanes& v, Combine combine) {
  __m128 q[4];
  std::memcpy(q, &v, sizeof q);
  __m128 a = combine(combine(q[0], q[2]), combine(q[1], q[3]));
  a = combine(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(combine(a, _mm_shuffle_ps(a, a, 1)));
}
INFER_INLINE float sum(const Lanes& v) {
  return folded(
      v, [](__m128 a, __m128 b) __attribute__((always_inline)) { return _mm_add_ps(a, b); });
}
INFER_INLINE float largest_lane(const Lanes& v) {
  return folded(
      v, [](__m128 a, __m128 b) __attribute__((always_inline)) { return _mm_max_ps(a, b); });
}
#else
template <class Combine>
INFER_INLINE float folded(const Lanes& v, Combine combine) {
  float x[kLanes];
  store(x, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x[i] = combine(x[i], x[i + width]);
  }
  return x[0];
}
INFER_INLINE float sum(const Lanes& v) {
  return folded(v, [](float a, float b) { return a + b; });
}
INFER_INLINE float largest_lane(const Lanes& v) {
  return folded(v, [](float a, float b) { return a > b ? a : b; });
}
#endif

/// The first lane that holds the largest value; 0 where there is no such thing because of NaNs.
INFER_INLINE int index_of_largest(const Lanes& v) {
  const Lanes largest = all(largest_lane(v));
  uint32_t bits = 1u << kLanes;
  for (int i = 0; i < kParts; ++i) bits |= equal_bits(v.part[i], largest.part[i]) << (kPartLanes * i);
  return __builtin_ctz(bits) & (kLanes - 1);
}
INFER_INLINE float lane(const Lanes& v, int i) {
  alignas(64) float x[kLanes];
  store(x, v);
  return x[i];
}

/// Whole numbers from 0 to 255 as bytes.
INFER_INLINE void store_bytes(uint8_t* out, const Lanes& v) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, _mm512_maskz_cvttps_epi32(0xffff, v.part[0]));
  std::memcpy(out, &bytes, kLanes);
#elif defined(__x86_64__)
  __m128 q[4];
  std::memcpy(q, &v, sizeof q);
  const __m128i low = _mm_packs_epi32(_mm_cvttps_epi32(q[0]), _mm_cvttps_epi32(q[1]));
  const __m128i bytes = _mm_packus_epi16(low, _mm_packs_epi32(_mm_cvttps_epi32(q[2]), _mm_cvttps_epi32(q[3])));
  std::memcpy(out, &bytes, kLanes);
#else
  float x[kLanes];
  store(x, v);
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<uint8_t>(static_cast<int>(x[i]));
#endif
}

// --- f16, exactly as half.h has it ---

INFER_INLINE Lanes load_halves(const uint16_t* x) {
  Lanes out;
#if defined(__AVX512F__)
  __m256i halves;
  std::memcpy(&halves, x, sizeof halves);
  out.part[0] = _mm512_maskz_cvtph_ps(0xffff, halves);
#elif defined(__F16C__)
  for (int i = 0; i < kParts; ++i) {
    __m128i halves;
    std::memcpy(&halves, x + kPartLanes * i, sizeof halves);
    out.part[i] = _mm256_cvtph_ps(halves);
  }
#else
  float wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = f16_to_f32(x[i]);
  out = load(wide);
#endif
  return out;
}

/// To nearest, ties to even, infinity where it overflows.
INFER_INLINE void store_halves(uint16_t* out, const Lanes& v) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, v.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(out, &halves, sizeof halves);
#elif defined(__F16C__)
  for (int i = 0; i < kParts; ++i) {
    const __m128i halves = _mm256_cvtps_ph(v.part[i], _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(out + kPartLanes * i, &halves, sizeof halves);
  }
#else
  float x[kLanes];
  store(x, v);
  for (int i = 0; i < kLanes; ++i) out[i] = f32_to_f16(x[i]);
#endif
}

// --- rows to lanes ---

/// Lane b of out[i] is x[n * b + i].
template <int n>
INFER_INLINE void load_across(const float* x, Lanes (&out)[n]) {
  static_assert(n % 4 == 0);
  alignas(64) float across[n][kLanes];
#if defined(__x86_64__)
  for (int b = 0; b < kLanes; b += 4) {
    for (int i = 0; i < n; i += 4) {
      __m128 rows[4];
      for (int k = 0; k < 4; ++k) rows[k] = _mm_loadu_ps(x + n * (b + k) + i);
      _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
      for (int k = 0; k < 4; ++k) _mm_store_ps(&across[i + k][b], rows[k]);
    }
  }
#else
  for (int b = 0; b < kLanes; ++b)
    for (int i = 0; i < n; ++i) across[i][b] = x[n * b + i];
#endif
  for (int i = 0; i < n; ++i) out[i] = load(across[i]);
}

/// out[b][i] is q[i][b].
INFER_INLINE void transpose_bytes(const uint8_t (&q)[32][kLanes], uint8_t (&out)[kLanes][32]) {
#if defined(__x86_64__)
  for (int half = 0; half < 2; ++half) {
    // Each round pairs row i with row i + 8; after four of them bytes of one column lie side by side.
    __m128i rows[16], next[16];
    std::memcpy(rows, q[16 * half], sizeof rows);
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 8; ++i) {
        next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
        next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
      }
      std::memcpy(rows, next, sizeof rows);
    }
    for (int b = 0; b < 16; ++b) std::memcpy(out[b] + 16 * half, &rows[b], 16);
  }
#else
  for (int b = 0; b < kLanes; ++b)
    for (int i = 0; i < 32; ++i) out[b][i] = q[i][b];
#endif
}

INFER_INLINE float least(float a, float b) { return a < b ? a : b; }
INFER_INLINE float most(float a, float b) { return a > b ? a : b; }
INFER_INLINE float size_of(float x) { return __builtin_fabsf(x); }
INFER_INLINE float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }
INFER_INLINE float clamped(float x, float low, float high) { return least(most(x, low), high); }
INFER_INLINE float inverse_or_zero(float x) { return x != 0 ? 1.0f / x : 0.0f; }

}  // namespace
}  // namespace infer
