// The timed loops for any x86-64.
#include <cstring>

#include "kernels/cpu/bandwidth.h"

namespace infer::cpu {
namespace {

uint64_t read(const uint8_t* data, size_t bytes) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    uint64_t line[8];
    std::memcpy(line, data + i, 64);
    for (int k = 0; k < 8; ++k) sum[k] ^= line[k];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

constexpr int kChains = 16;

uint64_t multiply(int64_t rounds, uint64_t seed) {
  int32_t acc[kChains] = {};
  int8_t a[kChains];
  for (int i = 0; i < kChains; ++i) a[i] = static_cast<int8_t>(seed + static_cast<uint64_t>(i));
  for (int64_t r = 0; r < rounds; ++r) {
    const auto b = static_cast<int8_t>(r);
    for (int i = 0; i < kChains; ++i)
      acc[i] = static_cast<int32_t>(static_cast<uint32_t>(acc[i]) + static_cast<uint32_t>(a[i] * b));
  }
  uint64_t sum = 0;
  for (int32_t x : acc) sum += static_cast<uint64_t>(x);
  return sum;
}

}  // namespace

const BandwidthTable kScalarBandwidth = {read, multiply, 2.0 * kChains};

}  // namespace infer::cpu
