// A table of levels: quantisations of one model, models, or types of its KV cache, each with what it costs and what it
// gains. Knows the rows and their forms as text; bench_levels.cpp measures them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tools/bench.h"
#include "tools/quality.h"

namespace infer::tools {

struct LevelRow {
  std::string level;              ///< "q4_k_m", a file's name, "q8_0" of a cache
  BenchRow prompt, generation;    ///< without seconds where that was not asked for
  size_t kv_bytes_per_token = 0;  ///< of a table of cache types; else 0
  std::optional<Quality> quality;
  bool best = false;  ///< see mark_best()

  double bits_per_weight() const;
  double prompt_rate() const;  ///< tok/s; 0 where not measured
  double generation_rate() const;
  /// GB/s that generation reads: the weights, and in a table of cache types the cache at its mean length too.
  double gbps() const;
  double share() const { return gbps() / generation.bandwidth_gbps; }  ///< of the measured read speed, [0, 1]
};

/// What choosing is about: the faster the better, the smaller the loss the better.
struct Merit {
  double speed, loss;
};
/// Whether each of them is such that no other is as good in both and better in one (the Pareto front).
std::vector<bool> unbeaten(std::span<const Merit> merits);
/// Sets LevelRow::best by speed of generation (of prompts where that was not measured) and mean KL divergence, where
/// the rows have both.
void mark_best(std::vector<LevelRow>& rows);

/// What the table is about, said once below it.
struct LevelsAbout {
  std::string source, text;  ///< what the levels are compared with and on; empty without quality
  int64_t n_windows = 0, n_ctx = 0;
  bool kv = false;  ///< levels of the cache
};

/// All rows in one of the forms of `infer bench -o`.
std::string levels_text(const std::string& form, const std::vector<LevelRow>& rows, const LevelsAbout& about);

/// Quality against speed, as SVG.
std::string levels_plot(const std::vector<LevelRow>& rows, const LevelsAbout& about);

}  // namespace infer::tools
