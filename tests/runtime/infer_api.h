// What tests of the public interface share: tiny models in files, requests, and the error that a call throws.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "infer.h"
#include "tests/catch.h"
#include "tests/tiny_model.h"

namespace infer::api_test {

inline const float kNan = std::nanf(""), kInfinity = std::numeric_limits<float>::infinity();

/// A model file that is there as long as the test runs.
struct File {
  std::string path;
  explicit File(const test::GgufWriter& writer) {
    static int n = 0;
    std::random_device random;
    path = (std::filesystem::temp_directory_path() /
            ("infer_api_" + std::to_string(random()) + "_" + std::to_string(n++) + ".gguf"))
               .string();
    writer.write(path);
  }
  explicit File(const test::TinyModel& model = {}) : File(test::tiny_model(model)) {}
  ~File() { std::filesystem::remove(path); }
};

inline Model load(const File& file, const std::string& device = "ref") {
  LoadOptions options;
  options.device = device;
  return Model::load(file.path, options);
}

inline EngineOptions small_options() {
  EngineOptions o;
  o.n_ctx = 256;
  o.n_threads = 1;
  return o;
}

inline Request text_request(const std::string& prompt, int64_t n) {
  Request r;
  r.prompt = prompt;
  r.max_tokens = n;
  r.sampling.seed = 5;
  r.sampling.ignore_eos = true;
  r.sampling.temperature = 2;
  r.sampling.top_k = 0;
  r.sampling.top_p = 1;
  r.sampling.min_p = 0;
  return r;
}

template <class Function>
Error error_of(Function&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error;
  }
  FAIL("no error");
  throw;
}

inline bool is_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t n = c < 0x80 ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC2 ? 2 : 0;
    if (n == 0 || i + n > text.size()) return false;
    for (size_t k = 1; k < n; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return false;
    i += n;
  }
  return true;
}

inline void put_float(std::string& data, size_t index, float value) { data.replace(index * 4, 4, test::le(value)); }

}  // namespace infer::api_test
