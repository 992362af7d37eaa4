// Recorded blocks and floats as files: tests/data/quants, and the shared folder where it is there.
#pragma once

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace infer::quant_test {

inline std::vector<char> read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Empty when there is no such file.
inline std::vector<float> read_floats(const std::string& path) {
  const std::vector<char> bytes = read_bytes(path);
  std::vector<float> floats(bytes.size() / sizeof(float));
  if (!floats.empty()) std::memcpy(floats.data(), bytes.data(), floats.size() * sizeof(float));
  return floats;
}

}  // namespace infer::quant_test
