// What the tables of `infer bench` have in common: keys of their records, sizes, last lines.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "tools/bench.h"

namespace infer::tools {

/// Machine, build, model and settings, with llama-bench's keys.
nlohmann::ordered_json machine_record(const BenchRow& row);
/// What was measured with --bw.
nlohmann::ordered_json limits_record(const BenchRow& row);
/// All of a row, as -o json prints it.
nlohmann::ordered_json bench_record(const BenchRow& row);
/// Below a table: measured limits, if there are any, and the build.
std::string last_lines(const BenchRow& row);
/// Version and commit: what was measured by one build need not hold for another.
std::string build_id();
/// "256.63 MiB", as llama-bench says it.
std::string size_text(size_t bytes);

}  // namespace infer::tools
