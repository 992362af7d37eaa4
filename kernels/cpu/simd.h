// Vectors of floats of the level that the including file is compiled for: Simd, and exp and tanh on it. Included by
// files named *_scalar.cpp, *_avx2.cpp and *_avx512.cpp only. All is in an anonymous namespace and inlined, so that the
// linker can never take one level's code into another's. AVX2 and AVX-512 give the same bits: the same operations per
// number.
#pragma once

#if defined(__AVX2__) || defined(__AVX512F__)
// GCC 12's own intrinsics read a deliberately undefined register, and it warns about that where they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#include <cstdint>

#include "quant/formats.h"

namespace infer::cpu {
namespace {

#if defined(__AVX512F__)

struct Simd {
  using Vec = __m512;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  static constexpr bool kFused = true;

  static INFER_HD Vec set(float x) { return _mm512_set1_ps(x); }
  static INFER_HD Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static INFER_HD void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
  static INFER_HD Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static INFER_HD Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static INFER_HD Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static INFER_HD Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  /// a * b + c
  static INFER_HD Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  /// b where one of the two is NaN
  static INFER_HD Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static INFER_HD Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static INFER_HD Vec abs(Vec a) { return _mm512_abs_ps(a); }
  static INFER_HD Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  /// a * 2^n for whole n in [-300, 300]
  static INFER_HD Vec scale(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
  static INFER_HD Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static INFER_HD Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
  static INFER_HD Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
  static INFER_HD Vec load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static INFER_HD Vec load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static INFER_HD Vec load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  /// Four bits of each of kLanes bytes, those from bit `shift` on.
  static INFER_HD Vec load_u4(const uint8_t* p, int shift) {
    const __m128i bytes = _mm_srli_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), shift);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15))));
  }
  static INFER_HD void store_f16(uint16_t* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static INFER_HD float first(Vec a) { return _mm512_cvtss_f32(a); }

  /// Every lane gets the largest of all, or NaN may win or lose.
  static INFER_HD Vec max_all(Vec a) {
    a = max(a, _mm512_shuffle_f32x4(a, a, 0x4e));
    a = max(a, _mm512_shuffle_f32x4(a, a, 0xb1));
    a = max(a, _mm512_permute_ps(a, 0x4e));
    return max(a, _mm512_permute_ps(a, 0xb1));
  }
  /// Every lane gets the sum: halves are added until one number is left.
  static INFER_HD Vec sum_all(Vec a) {
    a = add(a, _mm512_shuffle_f32x4(a, a, 0x4e));
    a = add(a, _mm512_shuffle_f32x4(a, a, 0xb1));
    a = add(a, _mm512_permute_ps(a, 0x4e));
    return add(a, _mm512_permute_ps(a, 0xb1));
  }

  /// dst[c * dst_stride + r] = element c of row(r), for r, c < kLanes.
  template <class Row>
  static INFER_HD void transpose(Row row, float* dst, int64_t dst_stride) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      const __m512 x = row(i), y = row(i + 1);
      a[i] = _mm512_unpacklo_ps(x, y);
      a[i + 1] = _mm512_unpackhi_ps(x, y);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int c = 0; c < 2; ++c) {
        const __m512d x = _mm512_castps_pd(a[i + c]), y = _mm512_castps_pd(a[i + 2 + c]);
        b[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
        b[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
      }
    }
    // b[4 g + c] holds, quarter by quarter, column 4 quarter + c of the rows 4 g to 4 g + 3.
    for (int c = 0; c < 4; ++c) {
      const __m512 even01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88),
                   odd01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
      const __m512 even23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
      const __m512 odd23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
      store(dst + c * dst_stride, _mm512_shuffle_f32x4(even01, even23, 0x88));
      store(dst + (4 + c) * dst_stride, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
      store(dst + (8 + c) * dst_stride, _mm512_shuffle_f32x4(even01, even23, 0xdd));
      store(dst + (12 + c) * dst_stride, _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
    }
  }
};

#elif defined(__AVX2__)

struct Simd {
  using Vec = __m256;
  using Mask = __m256;
  static constexpr int kLanes = 8;
  static constexpr bool kFused = true;

  static INFER_HD Vec set(float x) { return _mm256_set1_ps(x); }
  static INFER_HD Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static INFER_HD void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
  static INFER_HD Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static INFER_HD Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static INFER_HD Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static INFER_HD Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static INFER_HD Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static INFER_HD Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static INFER_HD Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static INFER_HD Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static INFER_HD Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static INFER_HD Vec scale(Vec a, Vec n) {
    // In two steps, since one factor would not be a float; only the second can round.
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    const __m256i p0 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i p1 = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return mul(mul(a, _mm256_castsi256_ps(p0)), _mm256_castsi256_ps(p1));
  }
  static INFER_HD Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static INFER_HD Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static INFER_HD Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }
  static INFER_HD Vec load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static INFER_HD Vec load_bf16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static INFER_HD Vec load_i8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static INFER_HD Vec load_u4(const uint8_t* p, int shift) {
    const __m128i bytes = _mm_srli_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), shift);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15))));
  }
  static INFER_HD void store_f16(uint16_t* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static INFER_HD float first(Vec a) { return _mm256_cvtss_f32(a); }

  static INFER_HD Vec max_all(Vec a) {
    a = max(a, _mm256_permute2f128_ps(a, a, 1));
    a = max(a, _mm256_permute_ps(a, 0x4e));
    return max(a, _mm256_permute_ps(a, 0xb1));
  }
  static INFER_HD Vec sum_all(Vec a) {
    a = add(a, _mm256_permute2f128_ps(a, a, 1));
    a = add(a, _mm256_permute_ps(a, 0x4e));
    return add(a, _mm256_permute_ps(a, 0xb1));
  }

  template <class Row>
  static INFER_HD void transpose(Row row, float* dst, int64_t dst_stride) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
      const __m256 x = row(i), y = row(i + 1);
      a[i] = _mm256_unpacklo_ps(x, y);
      a[i + 1] = _mm256_unpackhi_ps(x, y);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int c = 0; c < 2; ++c) {
        b[i + 2 * c] = _mm256_shuffle_ps(a[i + c], a[i + 2 + c], 0x44);
        b[i + 2 * c + 1] = _mm256_shuffle_ps(a[i + c], a[i + 2 + c], 0xee);
      }
    }
    for (int c = 0; c < 4; ++c) {
      store(dst + c * dst_stride, _mm256_permute2f128_ps(b[c], b[4 + c], 0x20));
      store(dst + (4 + c) * dst_stride, _mm256_permute2f128_ps(b[c], b[4 + c], 0x31));
    }
  }
};

#else

/// One number at a time; products are rounded before they are added.
struct Simd {
  using Vec = float;
  using Mask = bool;
  static constexpr int kLanes = 1;
  static constexpr bool kFused = false;

  static INFER_HD Vec set(float x) { return x; }
  static INFER_HD Vec load(const float* p) { return *p; }
  static INFER_HD void store(float* p, Vec a) { *p = a; }
  static INFER_HD Vec add(Vec a, Vec b) { return a + b; }
  static INFER_HD Vec sub(Vec a, Vec b) { return a - b; }
  static INFER_HD Vec mul(Vec a, Vec b) { return a * b; }
  static INFER_HD Vec div(Vec a, Vec b) { return a / b; }
  static INFER_HD Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static INFER_HD Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static INFER_HD Vec min(Vec a, Vec b) { return a < b ? a : b; }
  static INFER_HD Vec abs(Vec a) { return bits_float(float_bits(a) & 0x7fffffff); }
  static INFER_HD Vec round(Vec a) { return (a + 12582912.0f) - 12582912.0f; }
  static INFER_HD Vec scale(Vec a, Vec n) {
    const int32_t whole = n == n ? static_cast<int32_t>(n) : 0, half = whole >> 1;
    const auto power = [](int32_t e) { return bits_float(static_cast<uint32_t>(e + 127) << 23); };
    return a * power(half) * power(whole - half);
  }
  static INFER_HD Mask less(Vec a, Vec b) { return a < b; }
  static INFER_HD Mask both(Mask a, Mask b) { return a && b; }
  static INFER_HD Vec select(Mask m, Vec yes, Vec no) { return m ? yes : no; }
  static INFER_HD Vec load_f16(const uint16_t* p) { return f16_to_f32(*p); }
  static INFER_HD Vec load_bf16(const uint16_t* p) { return bf16_to_f32(*p); }
  static INFER_HD Vec load_i8(const int8_t* p) { return *p; }
  static INFER_HD Vec load_u4(const uint8_t* p, int shift) { return static_cast<float>(*p >> shift & 15); }
  static INFER_HD void store_f16(uint16_t* p, Vec a) { *p = f32_to_f16(a); }
  static INFER_HD float first(Vec a) { return a; }
  static INFER_HD Vec max_all(Vec a) { return a; }
  static INFER_HD Vec sum_all(Vec a) { return a; }
  template <class Row>
  static INFER_HD void transpose(Row row, float* dst, int64_t) {
    *dst = row(0);
  }
};

#endif

using Vec = Simd::Vec;
inline constexpr int kLanes = Simd::kLanes;

/// c[0] + x * (c[1] + x * (…)).
template <int n>
INFER_HD Vec polynomial(const float (&c)[n], Vec x) {
  Vec y = Simd::set(c[n - 1]);
  for (int i = n - 2; i >= 0; --i) y = Simd::fma(y, x, Simd::set(c[i]));
  return y;
}

/// e^x to about 1 ulp over the whole range, infinities and NaN included; exactly 1 for 0.
INFER_HD Vec exp(Vec x) {
  // The constant stands first so that a NaN comes through.
  x = Simd::max(Simd::set(-106.0f), Simd::min(Simd::set(90.0f), x));
  const Vec n = Simd::round(Simd::mul(x, Simd::set(1.44269504f)));
  Vec r = Simd::fma(n, Simd::set(-0.693359375f), x);  // exact: the factor has few bits
  r = Simd::fma(n, Simd::set(2.12194440e-4f), r);
  constexpr float kTail[] = {
      0.5f, 1.6666665459e-1f, 4.1665795894e-2f, 8.3334519073e-3f, 1.3981999507e-3f, 1.9875691500e-4f};
  const Vec p = Simd::fma(Simd::mul(r, r), polynomial(kTail, r), Simd::add(r, Simd::set(1.0f)));
  return Simd::scale(p, n);
}

/// tanh to a few ulp: a polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel.
INFER_HD Vec tanh(Vec x) {
  constexpr float kOdd[] = {-3.33332819422e-1f, 1.33314422036e-1f, -5.37397155531e-2f, 2.06390887954e-2f,
                            -5.70498872745e-3f};
  const Vec one = Simd::set(1.0f), square = Simd::mul(x, x);
  const Vec near_zero = Simd::fma(Simd::mul(x, square), polynomial(kOdd, square), x);
  const Vec far = Simd::sub(one, Simd::div(Simd::set(2.0f), Simd::add(exp(Simd::add(x, x)), one)));
  return Simd::select(Simd::less(Simd::abs(x), Simd::set(0.625f)), near_zero, far);
}

/// softcap * tanh(x / softcap)
INFER_HD Vec capped(Vec x, float softcap) {
  return Simd::mul(Simd::set(softcap), tanh(Simd::div(x, Simd::set(softcap))));
}

}  // namespace
}  // namespace infer::cpu
