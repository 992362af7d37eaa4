// `infer bench --levels`, `--kv-levels`, `--quality` and `--shape`: one row to a level, with speed and quality.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

/// Whether the flags ask for a table of levels instead of llama-bench's.
bool wants_levels(const BenchFlags& flags);

/// Measures and prints it; the exit status. Levels that do not fit are told and left out, and the status says so. What
/// was measured before an error or Ctrl-C is printed.
int bench_levels(const BenchFlags& flags);

}  // namespace infer::tools
