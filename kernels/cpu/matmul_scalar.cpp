// The matmul kernels for any x86-64, and the meaning of the operations that the other instruction sets must provide:
// Float and Int are one number of 16 rows, Bytes is 4 codes of 16 rows. Written with the compiler's vector types, which
// become SSE2 here and would become whatever another CPU has.
#include "kernels/cpu/matmul_kernels.h"

namespace infer::cpu {
namespace {

struct Scalar {
  using Float = float __attribute__((vector_size(64)));
  using Int = int32_t __attribute__((vector_size(64)));
  using Bytes = uint8_t __attribute__((vector_size(64)));
  using Sum = Int;  ///< an integer dot product being added up
  using Words = int16_t __attribute__((vector_size(64)));
  using Small = uint8_t __attribute__((vector_size(16)));
  using SignedSmall = int8_t __attribute__((vector_size(16)));

  static constexpr int kFewTokens = 1;           ///< up to here the one-pass kernel
  static constexpr int kTokens = 2, kTiles = 1;  ///< of a block in the many-token kernel
  static constexpr int kPlainTokens = 2;         ///< of a block with plain weights
  /// How far ahead of its use weight memory is asked for, when that helps.
  static constexpr int64_t kPrefetchBytes = 0;
  static INFER_HD void prefetch(const uint8_t*) {}
  /// What is added to signed codes so that dot sees unsigned ones.
  template <class P>
  static constexpr int kBias = P::is_signed ? 128 : 0;
  /// Whether dot gets signed codes instead (an instruction set without unsigned 8-bit products).
  template <class P>
  static constexpr bool kSignedCodes = false;
  /// How many quads dot may add up in 16 bits, where it does that.
  template <class P>
  static constexpr int kNarrow = 0;

  static INFER_HD Float zero() { return Float{}; }
  static INFER_HD Float set(float x) { return Float{} + x; }
  static INFER_HD Float add(Float a, Float b) { return a + b; }
  static INFER_HD Float sub(Float a, Float b) { return a - b; }
  static INFER_HD Float mul(Float a, Float b) { return a * b; }
  /// a * b + c; where the CPU has no fused form the product is rounded first.
  static INFER_HD Float fma(Float a, Float b, Float c) { return a * b + c; }
  static INFER_HD Float load_n(const float* p, int n) {
    Float r = {};
    std::memcpy(&r, p, static_cast<size_t>(n) * sizeof(float));
    return r;
  }
  static INFER_HD void store_n(float* p, Float a, int n) { std::memcpy(p, &a, static_cast<size_t>(n) * sizeof(float)); }

  template <class T>
  static INFER_HD T load(const uint8_t* p) {
    T r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
  static INFER_HD Float load_f16(const uint8_t* p) {
    uint16_t half[16];
    float r[16];
    std::memcpy(half, p, sizeof(half));
    for (int i = 0; i < 16; ++i) r[i] = f16_to_f32(half[i]);
    return load_n(r, 16);
  }
  static INFER_HD Float load_u8(const uint8_t* p) { return __builtin_convertvector(load<Small>(p), Float); }
  static INFER_HD Float load_u8_low(const uint8_t* p) { return __builtin_convertvector(load<Small>(p) & 15, Float); }
  static INFER_HD Float load_u8_high(const uint8_t* p) { return __builtin_convertvector(load<Small>(p) >> 4, Float); }
  static INFER_HD Float load_i8(const uint8_t* p) { return __builtin_convertvector(load<SignedSmall>(p), Float); }
  /// MXFP4's scales: 2^(e - 128).
  static INFER_HD Float load_exponent(const uint8_t* p) {
    float r[16];
    for (int i = 0; i < 16; ++i) r[i] = MXFP4::half_scale(p[i]);
    return load_n(r, 16);
  }
  template <int N>
  static INFER_HD void six_bits(const uint8_t* p, uint8_t* out) {
    unpack_six_bits<N>(p, out);
  }

  static INFER_HD Bytes load_bytes(const uint8_t* p) { return load<Bytes>(p); }
  static INFER_HD void store_bytes(uint8_t* p, Bytes a) { std::memcpy(p, &a, sizeof(a)); }
  static INFER_HD Bytes bit_and(Bytes a, int mask) { return a & static_cast<uint8_t>(mask); }
  static INFER_HD Bytes bit_or(Bytes a, Bytes b) { return a | b; }
  /// Shifts of bytes may bring bits of a neighbouring byte in: the caller masks.
  template <int n>
  static INFER_HD Bytes shift_right(Bytes a) {
    return Bytes(Words(a) >> n);
  }
  template <int n>
  static INFER_HD Bytes shift_left(Bytes a) {
    return Bytes(Words(a) << n);
  }
  template <int n>
  static INFER_HD Bytes shift(Bytes a) {
    if constexpr (n >= 0) {
      return shift_left<n>(a);
    } else {
      return shift_right<-n>(a);
    }
  }
  /// From stored values to what dot wants.
  template <class P>
  static INFER_HD Bytes finish(Bytes a) {
    if constexpr (P::bias == kTable) {
      uint8_t byte[64];
      std::memcpy(byte, &a, 64);
      for (uint8_t& x : byte) x = static_cast<uint8_t>(P::table(x) + 128);
      return load<Bytes>(byte);
    } else if constexpr (P::is_signed && P::bias != 128) {
      return a + static_cast<uint8_t>(128 - P::bias);
    } else {
      return a;
    }
  }

  static INFER_HD Int zero_int() { return Int{}; }
  static INFER_HD Int set_int(int32_t x) { return Int{} + x; }
  static INFER_HD Sum start(Int a) { return a; }
  static INFER_HD Float sum_to_float(Sum a) { return __builtin_convertvector(a, Float); }
  /// acc[row] += sum over 4 codes of w[row][i] * x[row][i], w unsigned, x signed. A product fits 16 bits: 255 * 128.
  /// `q` counts the calls that make one sum, up to M::kQuads.
  template <class M>
  static INFER_HD Sum dot(Sum acc, Bytes w, Int quad, int) {
    const Words even = (Words(w) & 255) * (Words(quad) << 8 >> 8);
    const Words odd = Words(Int(Words(w) >> 8) & 0x00ff00ff) * (Words(quad) >> 8);
    return acc + ((Int(even) << 16 >> 16) + (Int(even) >> 16)) + ((Int(odd) << 16 >> 16) + (Int(odd) >> 16));
  }

  /// One step of a plain format: F32 and F16 one column of 16 rows, BF16 two.
  template <class F>
  static INFER_HD auto load_plain(const uint8_t* p) {
    if constexpr (F::id == DType::BF16) {
      return load<Int>(p);
    } else if constexpr (F::id == DType::F16) {
      return load_f16(p);
    } else {
      return load<Float>(p);
    }
  }
  template <class F, class W>
  static INFER_HD Float fma_plain(const W& w, const uint8_t* x, Float acc) {
    float of[F::id == DType::BF16 ? 2 : 1];
    std::memcpy(of, x, sizeof of);
    if constexpr (F::id == DType::BF16) {
      acc = fma(Float(w << 16), set(of[0]), acc);
      return fma(Float(w & static_cast<int32_t>(0xffff0000)), set(of[1]), acc);
    } else {
      return fma(w, set(of[0]), acc);
    }
  }
};

}  // namespace

const MatmulTable kScalarMatmul = {prepare_int8<Scalar>, prepare_int8_rest<Scalar>, find_kernel<Scalar>};

}  // namespace infer::cpu
