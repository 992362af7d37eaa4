// What tests of the cpu backend share: every instruction set and number of threads, and comparisons with the oracle.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

namespace infer::cpu_test {

using Floats = std::vector<float>;

inline std::vector<BackendOptions> all_options() {
  std::vector<BackendOptions> list;
  for (cpu::Isa isa : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::isa_available(isa)) continue;
    for (int threads : {1, 2, 3}) list.push_back({threads, cpu::to_string(isa)});
  }
  return list;
}

inline std::string text(const BackendOptions& o) { return o.isa + " " + std::to_string(o.n_threads); }

/// Positions of what is not finite must agree; the rest is compared as noise over signal.
inline double nmse(const Floats& found, const Floats& wanted) {
  REQUIRE(found.size() == wanted.size());
  double error = 0, power = 0;
  int64_t misplaced = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    misplaced += std::isnan(found[i]) != std::isnan(wanted[i]);
    if (!std::isfinite(wanted[i])) continue;
    error += (static_cast<double>(found[i]) - wanted[i]) * (static_cast<double>(found[i]) - wanted[i]);
    power += static_cast<double>(wanted[i]) * wanted[i];
  }
  REQUIRE(misplaced == 0);
  return power > 0 ? error / power : error;
}

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline Floats poison(int64_t n) { return Floats(static_cast<size_t>(n), std::numeric_limits<float>::quiet_NaN()); }

/// A random weight [rows, cols] in a format's blocks, and the same packed for a backend.
struct Weight {
  std::vector<char> bytes;
  Tensor host, packed;
  Buffer buffer;

  Weight(DType type, int64_t rows, int64_t cols, uint32_t seed) {
    bytes = encoded_once(type, rows, cols, seed, [&] {
      std::vector<char> made(static_cast<size_t>(tensor_bytes(type, rows, cols)));
      const Floats values = random_floats(rows * cols, seed, 0.1f);
      if (!encode_row(type, values.data(), made.data(), rows * cols)) random_blocks(type, seed, made);
      return made;
    });
    host = Tensor(bytes.data(), type, {rows, cols});
  }
  // Formats that have no encoder here: any bits are codes, only the scales must be sensible.
  static void random_blocks(DType type, uint32_t seed, std::vector<char>& to) {
    std::mt19937 rng(seed);
    for (char& c : to) c = static_cast<char>(rng());
    const auto block = static_cast<size_t>(find_format(type)->block_bytes);
    const uint16_t small = f32_to_f16(0.002f);
    const size_t at = type == DType::Q6_K ? block - 2 : 0;
    for (size_t i = 0; i < to.size(); i += block) {
      std::memcpy(&to[i + at], &small, 2);
      if (type == DType::Q4_K || type == DType::Q5_K) std::memcpy(&to[i + 2], &small, 2);
    }
  }
  const Tensor& on(Backend& backend) {
    const size_t n = backend.packed_bytes(host, WeightRole::matrix);
    buffer = n > 0 ? backend.allocate(n) : nullptr;
    packed = backend.pack(host, WeightRole::matrix, buffer.get());
    return packed;
  }
};

}  // namespace infer::cpu_test
