// Vectors as tensors, and random numbers, for tests of ops.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/tensor.h"

namespace infer {

inline Tensor view(std::vector<float>& values, std::initializer_list<int64_t> shape) {
  return Tensor(values.data(), DType::F32, shape);
}
inline Tensor view(std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  return Tensor(values.data(), DType::I32, shape);
}

inline std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(generator);
  return out;
}

/// The bytes of a weight of random numbers, made once for each description: encoding them takes longer than all that
/// tests of many small cases do with them.
template <class Make>
const std::vector<char>& encoded_once(DType type, int64_t rows, int64_t cols, uint32_t seed, const Make& make) {
  static std::map<std::tuple<DType, int64_t, int64_t, uint32_t>, std::vector<char>> made;
  std::vector<char>& bytes = made[{type, rows, cols, seed}];
  if (bytes.empty()) bytes = make();
  return bytes;
}

}  // namespace infer
