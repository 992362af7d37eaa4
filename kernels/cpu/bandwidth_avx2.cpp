// The timed loops for AVX2: 32 products to a vpmaddubsw and vpmaddwd.
#include <immintrin.h>

#include "kernels/cpu/bandwidth.h"

namespace infer::cpu {
namespace {

uint64_t fold(__m256i x) {
  alignas(32) uint64_t part[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(part), x);
  return part[0] ^ part[1] ^ part[2] ^ part[3];
}

uint64_t read(const uint8_t* data, size_t bytes) {
  __m256i sum[8];
  for (__m256i& s : sum) s = _mm256_setzero_si256();
  for (size_t i = 0; i < bytes; i += 256) {
    for (int k = 0; k < 8; ++k) {
      sum[k] = _mm256_xor_si256(sum[k], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i) + k));
    }
  }
  for (int k = 1; k < 8; ++k) sum[0] = _mm256_xor_si256(sum[0], sum[k]);
  return fold(sum[0]);
}

constexpr int kChains = 12;

uint64_t multiply(int64_t rounds, uint64_t seed) {
  __m256i acc[kChains], a = _mm256_set1_epi32(static_cast<int>(seed & 0x07070707));
  const __m256i ones = _mm256_set1_epi16(1);
  for (__m256i& x : acc) x = _mm256_setzero_si256();
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kChains; ++i) {
      acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, acc[i]), ones));
    }
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm256_xor_si256(acc[0], acc[i]);
  return fold(acc[0]);
}

}  // namespace

const BandwidthTable kAvx2Bandwidth = {read, multiply, 2.0 * 32 * kChains};

}  // namespace infer::cpu
