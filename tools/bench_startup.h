// `infer bench --startup`: where the time goes from the start of the program to its first token. The program runs
// itself, so that the cost of starting a process is a real one; the child prints marks, the parent prints medians.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

/// The parent. `args` are those of the command.
int bench_startup(const BenchFlags& flags, const Args& args);
/// The child.
int print_startup_marks(const BenchFlags& flags);

}  // namespace infer::tools
