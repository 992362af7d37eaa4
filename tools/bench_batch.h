// `infer bench -npp -ntg -npl`: llama-batched-bench's table.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

/// Measures and prints it; the exit status. Rows that do not fit are told and left out, and the status says so.
int bench_batch(const BenchFlags& flags);

}  // namespace infer::tools
