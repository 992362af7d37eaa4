// `infer bench --roofline`, `--ladder`, `--host-overhead`: tables that explain a speed instead of only measuring it,
// and the drawing of a depth curve.
#pragma once

#include "tools/bench_flags.h"

namespace infer::tools {

/// Whether the flags ask for one of these tables instead of llama-bench's.
bool wants_explanation(const BenchFlags& flags);
/// Measures and prints it; the exit status. Throws Error(usage) for flags that it does not go with.
int bench_explanation(const BenchFlags& flags);

int bench_ladder(const BenchFlags& flags);

/// Whether `--plot` is of a depth sweep: `-d` with two depths or more, and no table of levels.
bool wants_depth_curve(const BenchFlags& flags);
void write_depth_curve(const std::string& path, const std::vector<BenchRow>& rows);

/// The model of the flags: of a file, or of a shape with random weights.
Model open_model(ModelFlags& flags, const std::string& path, const std::string& shape);
/// Throws Error(run) with the system's words; before anything takes its time.
void require_writable(const std::string& path);
void write_file(const std::string& path, const std::string& text);

}  // namespace infer::tools
