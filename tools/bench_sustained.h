// `infer bench --duration`: one test over a long time, a line to an interval, to see what heat and power limits leave
// of the speed.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

int bench_sustained(const BenchFlags& flags);

}  // namespace infer::tools
