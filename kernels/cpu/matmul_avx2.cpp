// The matmul kernels for AVX2 with FMA: two vector registers hold 16 rows. There is no product of unsigned and signed
// bytes that cannot saturate, so codes of up to 6 bits go in unsigned as they are stored, and wider ones (Q8_0, tables)
// signed, with the sign moved to the activation. The operations mean what matmul_scalar.cpp says.
#include <immintrin.h>

#include "kernels/cpu/matmul_kernels.h"

namespace infer::cpu {
namespace {

struct Avx2 {
  struct Float {
    __m256 a, b;  ///< rows 0-7, 8-15
  };
  struct Int {
    __m256i a, b;
  };
  using Bytes = Int;
  struct Sum {
    Int total, narrow;  ///< 32-bit sums; 16-bit sums not yet added to them
  };

  static constexpr int kFewTokens = 4;
  static constexpr int kTokens = 3, kTiles = 1;
  static constexpr int kPlainTokens = 5;
  static constexpr int64_t kPrefetchBytes = 8192;
  static INFER_HD void prefetch(const uint8_t* p) { _mm_prefetch(p, _MM_HINT_T0); }
  template <class P>
  static constexpr bool kSignedCodes = P::bias == 128 || P::bias == kTable;
  /// How many pairs of products with 127 fit 16 bits; more than four at a time measured slower.
  template <class P>
  static constexpr int kFit = 32767 / (2 * 127 * P::largest);
  template <class P>
  static constexpr int kNarrow = kFit<P> < 4 ? kFit<P> : 4;
  template <class P>
  static constexpr int kBias = kSignedCodes<P> ? 0 : P::bias;

  static INFER_HD Float zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static INFER_HD Float set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static INFER_HD Float add(Float x, Float y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static INFER_HD Float sub(Float x, Float y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static INFER_HD Float mul(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static INFER_HD Float fma(Float x, Float y, Float z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static INFER_HD Float to_float(Int x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static INFER_HD Float load_n(const float* p, int n) {
    if (n == 16) return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
    float part[16] = {};
    std::memcpy(part, p, static_cast<size_t>(n) * sizeof(float));
    return {_mm256_loadu_ps(part), _mm256_loadu_ps(part + 8)};
  }
  static INFER_HD void store_n(float* p, Float x, int n) {
    if (n == 16) {
      _mm256_storeu_ps(p, x.a);
      _mm256_storeu_ps(p + 8, x.b);
    } else {
      float part[16];
      _mm256_storeu_ps(part, x.a);
      _mm256_storeu_ps(part + 8, x.b);
      std::memcpy(p, part, static_cast<size_t>(n) * sizeof(float));
    }
  }

  static INFER_HD __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static INFER_HD __m256i load_32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static INFER_HD void store_32(uint8_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static INFER_HD Float load_f16(const uint8_t* p) {
    return {_mm256_cvtph_ps(load_16(p)), _mm256_cvtph_ps(load_16(p + 16))};
  }
  static INFER_HD Int widen(__m128i x) {
    return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(x, x))};
  }
  static INFER_HD Float load_u8(const uint8_t* p) { return to_float(widen(load_16(p))); }
  static INFER_HD Float load_u8_low(const uint8_t* p) {
    return to_float(widen(_mm_and_si128(load_16(p), _mm_set1_epi8(15))));
  }
  static INFER_HD Float load_u8_high(const uint8_t* p) {
    return to_float(widen(_mm_and_si128(_mm_srli_epi16(load_16(p), 4), _mm_set1_epi8(15))));
  }
  static INFER_HD Float load_i8(const uint8_t* p) {
    const __m128i x = load_16(p);
    return to_float({_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))});
  }
  static INFER_HD __m256 exponent(__m256i e) {
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const __m256i is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, is_tiny));
  }
  static INFER_HD Float load_exponent(const uint8_t* p) {
    const Int e = widen(load_16(p));
    return {exponent(e.a), exponent(e.b)};
  }
  template <int N>
  static INFER_HD void six_bits(const uint8_t* p, uint8_t* out) {
    unpack_six_bits<N>(p, out);
  }

  static INFER_HD Bytes load_bytes(const uint8_t* p) { return {load_32(p), load_32(p + 32)}; }
  static INFER_HD void store_bytes(uint8_t* p, Bytes x) {
    store_32(p, x.a);
    store_32(p + 32, x.b);
  }
  static INFER_HD Bytes bit_and(Bytes x, int mask) {
    const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
  }
  static INFER_HD Bytes bit_or(Bytes x, Bytes y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
  template <int n>
  static INFER_HD Bytes shift_right(Bytes x) {
    return {_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)};
  }
  template <int n>
  static INFER_HD Bytes shift_left(Bytes x) {
    return {_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)};
  }
  template <int n>
  static INFER_HD Bytes shift(Bytes x) {
    if constexpr (n >= 0) {
      return shift_left<n>(x);
    } else {
      return shift_right<-n>(x);
    }
  }
  template <class P>
  static INFER_HD Bytes finish(Bytes x) {
    if constexpr (P::bias == kTable) {
      alignas(16) uint8_t table[16];
      for (int i = 0; i < 16; ++i) table[i] = static_cast<uint8_t>(P::table(i));
      const __m256i t = _mm256_broadcastsi128_si256(load_16(table));
      return {_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
    } else if constexpr (P::bias == 128) {
      const __m256i sign = _mm256_set1_epi8(-128);
      return {_mm256_xor_si256(x.a, sign), _mm256_xor_si256(x.b, sign)};
    } else {
      return x;
    }
  }

  static INFER_HD Int zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static INFER_HD Int set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static INFER_HD Sum start(Int x) { return {x, x}; }
  static INFER_HD Float sum_to_float(Sum x) { return to_float(x.total); }
  template <class M>
  static INFER_HD void dot_half(__m256i& total, __m256i& narrow, __m256i w, __m256i quad, int q) {
    const __m256i pairs = M::kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(quad, w))
                                     : _mm256_maddubs_epi16(w, quad);
    narrow = q % M::kNarrow == 0 ? pairs : _mm256_add_epi16(narrow, pairs);
    if ((q + 1) % M::kNarrow == 0 || q + 1 == M::kQuads) {
      total = _mm256_add_epi32(total, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
    }
  }
  template <class M>
  static INFER_HD Sum dot(Sum sum, Bytes w, Int quad, int q) {
    dot_half<M>(sum.total.a, sum.narrow.a, w.a, quad.a, q);
    dot_half<M>(sum.total.b, sum.narrow.b, w.b, quad.b, q);
    return sum;
  }

  template <class F>
  static INFER_HD auto load_plain(const uint8_t* p) {
    if constexpr (F::id == DType::BF16) {
      return load_bytes(p);
    } else if constexpr (F::id == DType::F16) {
      return load_f16(p);
    } else {
      return Float{_mm256_castsi256_ps(load_32(p)), _mm256_castsi256_ps(load_32(p + 32))};
    }
  }
  static INFER_HD Float low_halves(Bytes x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
  }
  static INFER_HD Float high_halves(Bytes x) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, mask)), _mm256_castsi256_ps(_mm256_and_si256(x.b, mask))};
  }
  template <class F, class W>
  static INFER_HD Float fma_plain(const W& w, const uint8_t* x, Float acc) {
    float of[F::id == DType::BF16 ? 2 : 1];
    std::memcpy(of, x, sizeof of);
    if constexpr (F::id == DType::BF16) {
      acc = fma(low_halves(w), set(of[0]), acc);
      return fma(high_halves(w), set(of[1]), acc);
    } else {
      return fma(w, set(of[0]), acc);
    }
  }
};

}  // namespace

const MatmulTable kAvx2Matmul = {prepare_int8<Avx2>, prepare_int8_rest<Avx2>, find_kernel<Avx2>};

}  // namespace infer::cpu
