// Flags of what `infer bench` does beside llama-bench's table: over a long time, against an earlier run, from the start
// of the program. One place checks which of them go together.
#pragma once

#include <string>

#include "tools/arguments.h"

namespace infer::tools {

struct BenchModes {
  double duration = 0;  ///< seconds; 0: repetitions are counted instead
  bool energy = false;
  std::string save, against;
  double tolerance = 0.03;
  bool startup = false;
  bool startup_marks = false;  ///< this is a process that --startup has started
  bool any() const { return duration > 0 || energy || !save.empty() || !against.empty() || startup || startup_marks; }
};

void declare(Arguments& arguments, BenchModes& modes);

/// Throws Error(usage) for flags that say different things, or nothing together.
void check(const BenchModes& modes, bool levels, bool tokenizer, int64_t repetitions, bool many);

}  // namespace infer::tools
