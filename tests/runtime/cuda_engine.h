// What tests of engines on a GPU share: tiny models in files, the reference's logits, and how far an answer may be from
// them. Without a GPU each test says SKIPPED.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "infer.h"
#include "tests/catch.h"
#include "tests/tiny_model.h"

namespace infer::cuda_engine_test {

using Ids = std::vector<TokenId>;

inline bool skipped() {
  for (const std::string& device : list_devices())
    if (device.starts_with("cuda")) return false;
  std::cout << "SKIPPED: no CUDA device" << std::endl;
  static bool warned = false;
  if (!warned) WARN("SKIPPED: no CUDA device; engines were not tested on one");
  warned = true;
  return true;
}

/// A tiny model with heads that the GPU's kernels know.
struct File {
  std::string path;
  explicit File(DType weights, int64_t n_experts = 0, int64_t n_layers = 3, int value_exponent = 9) {
    test::TinyModel tiny;
    tiny.weights = weights;
    tiny.dim = 256, tiny.ffn_dim = 512, tiny.n_layers = n_layers, tiny.n_experts = n_experts, tiny.n_active = 3;
    tiny.value_exponent = value_exponent, tiny.context = 1024;
    write(tiny);
  }
  explicit File(const test::TinyModel& tiny) { write(tiny); }
  void write(const test::TinyModel& tiny) {
    path = (std::filesystem::temp_directory_path() /
            ("infer_cuda_engine_" + std::to_string(std::random_device()()) + ".gguf"))
               .string();
    test::write_tiny_model(path, tiny);
  }
  ~File() { std::filesystem::remove(path); }
  Model load(const std::string& device) const {
    LoadOptions options;
    options.device = device;
    return Model::load(path, options);
  }
};

inline EngineOptions options(const std::string& mode = "", const std::string& kv = "f32", int64_t n_seqs = 1) {
  EngineOptions o;
  o.n_ctx = 384;
  o.n_seqs = n_seqs;
  o.mode = mode;
  const size_t slash = kv.find('/');  // K/V, or one type for both
  o.k_type = kv.substr(0, slash);
  o.v_type = slash == std::string::npos ? kv : kv.substr(slash + 1);
  return o;
}

inline Ids prompt(int64_t n, int64_t salt = 0) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>((i * i * 31 + salt * 101 + i * 7) % 256));
  return ids;
}

inline Request request(Ids ids, int64_t n, float temperature = 0) {
  Request r;
  r.ids = std::move(ids);
  r.max_tokens = n;
  r.sampling.temperature = temperature;
  r.sampling.seed = 7;
  r.sampling.ignore_eos = true;
  return r;
}

inline std::vector<float> all_logits(Engine& engine, const Ids& ids) {
  std::vector<float> out;
  engine.logits(ids, 0, [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); });
  return out;
}

inline double nmse(const std::vector<float>& found, const std::vector<float>& wanted) {
  double error = 0, power = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(static_cast<double>(found[i]) - wanted[i], 2);
    power += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return found.size() == wanted.size() && std::isfinite(error) ? error / power : INFINITY;
}

/// Noise over signal that formats of weights and of the cache may cost.
inline double bar(DType weights, const std::string& kv) {
  // Prompts round the weights of attention to f16, whatever the cache.
  const double of_weights = weights == DType::F32 ? 2e-5 : weights == DType::Q8_0 ? 3e-3 : 1e-3;
  return std::max(of_weights, kv.find("q4_0") != std::string::npos ? 2e-2
                              : kv == "q8_0"                       ? 1e-3
                              : kv == "bf16"                       ? 1e-4
                                                                   : 2e-5);
}

/// How far below the reference's largest logit the tokens of an answer lie at most, in roots of mean squares.
inline std::vector<double> gaps_of(Engine& reference, Ids text, const Ids& answer) {
  const size_t n_prompt = text.size();
  text.insert(text.end(), answer.begin(), answer.end());
  const std::vector<float> rows = all_logits(reference, text);
  const size_t vocab = rows.size() / text.size();
  std::vector<double> gaps;
  for (size_t i = 0; i < answer.size(); ++i) {
    const float* row = rows.data() + (n_prompt + i - 1) * vocab;
    double power = 0;
    for (size_t c = 0; c < vocab; ++c) power += static_cast<double>(row[c]) * row[c];
    const double rms = std::sqrt(power / static_cast<double>(vocab));
    gaps.push_back((*std::max_element(row, row + vocab) - row[answer[i]]) / rms);
  }
  return gaps;
}
inline double largest_gap(Engine& reference, const Ids& text, const Ids& answer) {
  const std::vector<double> gaps = gaps_of(reference, text, answer);
  return *std::max_element(gaps.begin(), gaps.end());
}

inline const char* const kModes[] = {"eager", "graph", "persistent", "auto"};

}  // namespace infer::cuda_engine_test
