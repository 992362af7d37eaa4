// The matmul kernels for AVX-512 with VNNI and BF16: a vector register is 16 rows of one number or of 4 codes, dot is
// one vpdpbusd. The operations mean what matmul_scalar.cpp says.

// GCC 12's own intrinsics read a deliberately undefined register, and it warns about that where they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/cpu/matmul_kernels.h"

namespace infer::cpu {
namespace {

struct Avx512 {
  using Float = __m512;
  using Int = __m512i;
  using Bytes = __m512i;
  using Sum = __m512i;

  static constexpr int kFewTokens = 8;
  static constexpr int kTokens = 6, kTiles = 2;
  static constexpr int kPlainTokens = 12;
  static constexpr int64_t kPrefetchBytes = 8192;
  static INFER_HD void prefetch(const uint8_t* p) { _mm_prefetch(p, _MM_HINT_T0); }
  template <class P>
  static constexpr int kBias = P::is_signed ? 128 : 0;
  template <class P>
  static constexpr bool kSignedCodes = false;
  template <class P>
  static constexpr int kNarrow = 0;

  static INFER_HD Float zero() { return _mm512_setzero_ps(); }
  static INFER_HD Float set(float x) { return _mm512_set1_ps(x); }
  static INFER_HD Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static INFER_HD Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static INFER_HD Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static INFER_HD Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static INFER_HD __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static INFER_HD Float load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static INFER_HD void store_n(float* p, Float a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }

  static INFER_HD __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static INFER_HD Float load_f16(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static INFER_HD Float widen_u8(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a)); }
  static INFER_HD Float load_u8(const uint8_t* p) { return widen_u8(load_16(p)); }
  static INFER_HD Float load_u8_low(const uint8_t* p) { return widen_u8(_mm_and_si128(load_16(p), _mm_set1_epi8(15))); }
  static INFER_HD Float load_u8_high(const uint8_t* p) {
    return widen_u8(_mm_and_si128(_mm_srli_epi16(load_16(p), 4), _mm_set1_epi8(15)));
  }
  static INFER_HD Float load_i8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_16(p))); }
  static INFER_HD Float load_exponent(const uint8_t* p) {
    const __m512i e = _mm512_cvtepu8_epi32(load_16(p));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, tiny, _mm512_set1_epi32(0x00200000), e));
  }
  template <int N>
  static INFER_HD void six_bits(const uint8_t* p, uint8_t* out) {
    if constexpr (N == 16) {
      const Bytes low0 = load_bytes(p), low1 = load_bytes(p + 64), high = load_bytes(p + 128);
      store_bytes(out, bit_or(bit_and(low0, 15), bit_and(shift_left<4>(high), 48)));
      store_bytes(out + 64, bit_or(bit_and(low1, 15), bit_and(shift_left<2>(high), 48)));
      store_bytes(out + 128, bit_or(bit_and(shift_right<4>(low0), 15), bit_and(high, 48)));
      store_bytes(out + 192, bit_or(bit_and(shift_right<4>(low1), 15), bit_and(shift_right<2>(high), 48)));
    } else {
      const __m256i first_two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64));
      const Bytes low = load_bytes(p);
      const Bytes high = _mm512_inserti64x4(_mm512_castsi256_si512(first_two), _mm256_srli_epi16(first_two, 2), 1);
      store_bytes(out, bit_or(bit_and(low, 15), bit_and(shift_left<4>(high), 48)));
      store_bytes(out + 64, bit_or(bit_and(shift_right<4>(low), 15), bit_and(high, 48)));
    }
  }

  static INFER_HD Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static INFER_HD void store_bytes(uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a); }
  static INFER_HD Bytes bit_and(Bytes a, int mask) {
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  static INFER_HD Bytes bit_or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
  template <int n>
  static INFER_HD Bytes shift_right(Bytes a) {
    return _mm512_srli_epi16(a, n);
  }
  template <int n>
  static INFER_HD Bytes shift_left(Bytes a) {
    return _mm512_slli_epi16(a, n);
  }
  template <int n>
  static INFER_HD Bytes shift(Bytes a) {
    if constexpr (n >= 0) {
      return shift_left<n>(a);
    } else {
      return shift_right<-n>(a);
    }
  }
  template <class P>
  static INFER_HD Bytes finish(Bytes a) {
    if constexpr (P::bias == kTable) {
      alignas(16) uint8_t table[16];
      for (int i = 0; i < 16; ++i) table[i] = static_cast<uint8_t>(P::table(i) + 128);
      return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_16(table)), a);
    } else if constexpr (P::is_signed && P::bias != 128) {
      return _mm512_add_epi8(a, _mm512_set1_epi8(128 - P::bias));
    } else {
      return a;
    }
  }

  static INFER_HD Int zero_int() { return _mm512_setzero_si512(); }
  static INFER_HD Int set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static INFER_HD Sum start(Int a) { return a; }
  template <class M>
  static INFER_HD Sum dot(Sum sum, Bytes w, Int quad, int) {
    return _mm512_dpbusd_epi32(sum, w, quad);
  }
  static INFER_HD Float sum_to_float(Sum a) { return _mm512_cvtepi32_ps(a); }

  template <class F>
  static INFER_HD auto load_plain(const uint8_t* p) {
    if constexpr (F::id == DType::BF16) {
      return load_bytes(p);
    } else if constexpr (F::id == DType::F16) {
      return load_f16(p);
    } else {
      return _mm512_loadu_ps(p);
    }
  }
  template <class F, class W>
  static INFER_HD Float fma_plain(const W& w, const uint8_t* x, Float acc) {
    float of[F::id == DType::BF16 ? 2 : 1];
    std::memcpy(of, x, sizeof of);
    if constexpr (F::id == DType::BF16) {
      const __m512i odd = _mm512_and_si512(w, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000)));
      acc = fma(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_set1_ps(of[0]), acc);
      return fma(_mm512_castsi512_ps(odd), _mm512_set1_ps(of[1]), acc);
    } else {
      return fma(w, _mm512_set1_ps(of[0]), acc);
    }
  }

  /// As the function of this name in matmul_kernels.h, bit for bit.
  static INFER_HD void quantize_group(const float* x, ActivationGroup& out) {
    const __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const __m512i most = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                                          _mm512_and_si512(_mm512_castps_si512(x1), magnitude));
    const GroupRange range(_mm512_reduce_max_epu32(most));
    const __mmask16 keep = range.finite ? 0xffff : 0;
    const __m512 inverse = _mm512_set1_ps(range.inverse);
    const __m128i code0 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x0, inverse)));
    const __m128i code1 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x1, inverse)));
    const __m256i codes = _mm256_inserti128_si256(_mm256_castsi128_si256(code0), code1, 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.quad), codes);
    const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
    const __m256i twos = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
    const __m256i halves = _mm256_add_epi32(twos, _mm256_shuffle_epi32(twos, 0xb1));
    set_sums(range.scale, _mm256_extract_epi32(halves, 0), _mm256_extract_epi32(halves, 4), out);
  }
};

}  // namespace

const MatmulTable kAvx512Matmul = {prepare_int8<Avx512>, prepare_int8_rest<Avx512>, find_kernel<Avx512>};

}  // namespace infer::cpu
