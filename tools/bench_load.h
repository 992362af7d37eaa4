// `infer bench --arrival` and `--sla`: what requests feel while others are under way, and how many may be.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

/// A row to a process of arrivals and a size of requests; the exit status. What does not fit is told and left out.
int bench_arrival(const BenchFlags& flags);

/// A row to each probe, and the answer in a line below. Status 5 when not even one request at a time keeps the targets.
int bench_sla(const BenchFlags& flags);

}  // namespace infer::tools
