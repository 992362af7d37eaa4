// `infer bench --autotune`: whole steps of a GPU by every way through their products, what follows from their times,
// and the file that keeps it.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

/// Measures, prints the table and writes the file; the exit status. Throws Error(run) without a GPU.
int bench_autotune(const BenchFlags& flags);

}  // namespace infer::tools
