// Measuring speed: what `infer bench` runs for every row of every table.
#pragma once

#include <random>
#include <vector>

#include "tools/bench.h"
#include "tools/energy.h"

namespace infer::tools {

/// An engine for one case, with random tokens.
class BenchRunner {
 public:
  BenchRunner(const Model& model, const LoadOptions& load, const BenchCase& c);

  /// On a GPU at full size: what is done at the first sight of a shape is not what is measured.
  void warm_up();
  /// Seconds of the forward passes of c.n_prompt tokens at once and c.n_gen one by one, after c.depth tokens.
  double measure() { return measure(c_.n_prompt, c_.n_gen); }
  const Engine& engine() const { return engine_; }

 private:
  std::vector<TokenId> ids(int64_t n);
  double measure(int64_t n_prompt, int64_t n_gen);

  const Model& model_;
  BenchCase c_;
  std::mt19937 random_;
  Engine engine_;
  std::vector<TokenId> depth_;
};

/// Weights in matrices that every prompt token meets: neither the embedding rows nor the head, which only one row sees.
int64_t matrix_params(const ModelInfo& info);

/// What a row says about model and machine.
BenchRow describe(const BenchCase& c, const Model& model);

/// How an engine for a case computes.
EngineOptions engine_options(const LoadOptions& load, const BenchCase& c);

/// Measures one case `repetitions` times, after a warm-up if asked for; false when Ctrl-C came in between. `energy`:
/// null, or what tells the joules.
bool measure_row(BenchRow& row, const Model& model, const LoadOptions& load, bool warmup, int64_t repetitions,
                 EnergyMeter* energy = nullptr);

/// What this machine can do: the CPU's limits or the GPU's.
struct Limits {
  double cpu_gbps = 0, cpu_gops = 0, gpu_gbps = 0, gpu_tflops = 0;
  /// Measures unless that was done. `again`: on a CPU once more, and the most counts: others may have been busy before.
  void measure(bool gpu, int n_threads, bool again = false);
  void put_into(BenchRow& row) const;
};

}  // namespace infer::tools
