// The flags of `infer bench`.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tools/bench.h"
#include "tools/bench_modes.h"
#include "tools/many_flags.h"

namespace infer::tools {

struct BenchFlags {
  ModelFlags model;
  std::vector<std::string> models;
  std::vector<int64_t> n_prompt, n_gen, depth, n_batch, n_ubatch, n_threads;
  std::vector<std::pair<int64_t, int64_t>> both;  ///< -pg
  std::vector<std::string> k_types, v_types;
  int64_t repetitions = 5, delay = 0;
  std::string form = "md", tokenizer_file;
  // Of the table of levels, see bench_levels.h.
  std::vector<std::string> levels, kv_levels;
  std::string shape, quality_file, reference, plot;
  int64_t n_ctx = 0, n_windows = -1;                             ///< of the quality; 0: the table's usual context
  bool roofline = false, ladder = false, host_overhead = false;  ///< see bench_explain.h
  bool autotune = false;                                         ///< see autotune.h
  BenchModes modes;
  ManyFlags many;
  bool warmup = true, bandwidth = false, tokenizer = false, progress = false;
};

void declare(Arguments& arguments, BenchFlags& flags);
/// Every combination of the parameters, for one model.
std::vector<BenchCase> expand(const BenchFlags& flags, const std::string& model);

/// "512,1024", "128-512+128", "1-16*2" to integers.
std::vector<int64_t> parse_ranges(const std::string& flag, const std::string& text);

}  // namespace infer::tools
