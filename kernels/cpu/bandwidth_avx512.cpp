// The timed loops for AVX-512: 64 products to a vpdpbusd.

// GCC 12's own intrinsics read a deliberately undefined register, and it warns about that where they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/cpu/bandwidth.h"

namespace infer::cpu {
namespace {

uint64_t fold(__m512i x) {
  alignas(64) uint64_t part[8];
  _mm512_store_si512(part, x);
  uint64_t sum = 0;
  for (uint64_t p : part) sum ^= p;
  return sum;
}

uint64_t read(const uint8_t* data, size_t bytes) {
  __m512i sum[8];
  for (__m512i& s : sum) s = _mm512_setzero_si512();
  for (size_t i = 0; i < bytes; i += 512) {
    for (int k = 0; k < 8; ++k) sum[k] = _mm512_xor_si512(sum[k], _mm512_load_si512(data + i + 64 * k));
  }
  for (int k = 1; k < 8; ++k) sum[0] = _mm512_xor_si512(sum[0], sum[k]);
  return fold(sum[0]);
}

constexpr int kChains = 16;

uint64_t multiply(int64_t rounds, uint64_t seed) {
  __m512i acc[kChains], a = _mm512_set1_epi32(static_cast<int>(seed & 0x07070707));
  __m512i b = _mm512_set1_epi32(static_cast<int>(seed));
  for (__m512i& x : acc) x = _mm512_setzero_si512();
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
    asm volatile("" : "+v"(b));  // or the compiler adds the same product up in fewer instructions
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_xor_si512(acc[0], acc[i]);
  return fold(acc[0]);
}

}  // namespace

const BandwidthTable kAvx512Bandwidth = {read, multiply, 2.0 * 64 * kChains};

}  // namespace infer::cpu
