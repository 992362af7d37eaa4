// What --deterministic costs: `infer bench` measures each row on a GPU without it, too, and says both speeds below the
// table. On a CPU there is one kind of kernels, and nothing to compare.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tools/common.h"

namespace infer::tools {

/// A speed with it and without, in tok/s.
struct SpeedPair {
  std::string what;  ///< "pp512"
  double with = 0, without = 0;
};

class DeterministicCost {
 public:
  /// Takes the wish away from what loads models: a model would hand it to all its engines, and both kinds share one.
  explicit DeterministicCost(LoadOptions& load) : wanted_(std::exchange(load.deterministic, false)) {}

  bool wanted() const { return wanted_; }  ///< for EngineOptions
  bool measured_on(const Model& model) const { return wanted_ && on_gpu(model); }
  void add(SpeedPair pair) { pairs_.push_back(std::move(pair)); }
  /// Lines for below the table; empty where it was not asked for.
  std::string text() const;

 private:
  bool wanted_;
  std::vector<SpeedPair> pairs_;
};

}  // namespace infer::tools
