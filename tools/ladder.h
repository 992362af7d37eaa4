// The ladder: one model from the plainest way to compute it to the quickest, a technique to a step, beside the gains
// that guides to inference promise for each. Knows the steps of each kind of device and their forms as text and as a
// picture; bench_ladder.cpp measures them.
#pragma once

#include <string>
#include <vector>

#include "tools/bench.h"

namespace infer::tools {

/// What one step changes, in full: nothing is taken from the step before.
struct LadderStep {
  std::string name;
  std::string guides;  ///< what guides promise of it: "1.5-2x"; empty: nothing
  std::string quant;   ///< format of the weights
  std::string isa, mode;
  bool fusion = true;
  std::vector<std::string> unfused = {};
  int n_threads = 0;
  /// A fusion by itself: the step that it belongs to without it. Its gain is that step's speed over its own.
  bool without = false;
};

/// A technique that a device does not have, and why.
struct LadderOmission {
  std::string name, why;
};

struct LadderPlan {
  std::vector<LadderStep> steps;
  std::vector<LadderOmission> omissions;
};
/// `sixteen`: "F16" or "BF16". `four`: "Q4_K_M" or "Q4_0". `isas`: those of this CPU, plainest first.
LadderPlan cpu_ladder(const std::string& sixteen, const std::string& four, const std::vector<std::string>& isas,
                      int n_threads);
LadderPlan gpu_ladder(const std::string& sixteen, const std::string& four);

struct LadderRow {
  LadderStep step;
  BenchRow prompt, generation;  ///< without seconds where that was not asked for
  double prompt_rate() const;
  double generation_rate() const;
  double gbps() const { return generation_rate() * static_cast<double>(generation.stream_bytes) / 1e9; }
};
/// Of row `i` over the step before, or of the step it belongs to over a row `without`; 0: none.
double ladder_gain(const std::vector<LadderRow>& rows, size_t i, double (LadderRow::*rate)() const);

/// All rows in one of the forms of `infer bench -o`, and what was left out.
std::string ladder_text(const std::string& form, const std::vector<LadderRow>& rows,
                        const std::vector<LadderOmission>& omissions);
/// Bars of the steps as SVG.
std::string ladder_plot(const std::vector<LadderRow>& rows);

}  // namespace infer::tools
