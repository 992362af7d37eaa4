// Where the time of a prompt and of a generation goes: a row for every stage, what lies between them, their sum, and a
// step as usual, with the bytes and operations of each and the limits that they meet. Knows numbers and their forms as
// text and as a picture; bench_explain.cpp measures them.
#pragma once

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tools/bench.h"

namespace infer::tools {

/// One phase as measured, beside the limits of the machine.
struct RooflinePhase {
  BenchRow about;  ///< test, model and machine, with the measured limits
  StepProfile profile;
  int64_t n_seqs = 1;  ///< so many of them at once
  double peak_gops() const { return about.on_gpu() ? 1e3 * about.tensor_peak_tflops : about.int8_peak_gops; }
  const char* peak_name() const { return about.on_gpu() ? "bf16" : "int8"; }
  const char* cache_name() const { return about.on_gpu() ? "L2" : "cache"; }
};

/// Per token. `sum` adds up the rows above it; `step` is measured by itself, as steps always run.
struct RooflineRow {
  enum class Kind { stage, between, sum, step } kind = Kind::stage;
  std::string name;
  double us = 0, share = 0, calls = 0, launches = 0;  ///< share: of the time of `step`
  double weight_bytes = 0, other_bytes = 0, flops = 0;
  double call_bytes = 0;  ///< most that one call touches; of the step: what one step touches
  bool fits_cache = false;
  std::vector<KernelProfile> kernels = {};  ///< of a step: where it is one kernel
  double bytes() const { return weight_bytes + other_bytes; }
  double gbps() const { return us > 0 ? bytes() / us / 1e3 : 0; }
  double gops() const { return us > 0 ? flops / us / 1e3 : 0; }
};
/// Stages in the order in which they run, "between stages", "sum", "step".
std::vector<RooflineRow> roofline_rows(const RooflinePhase& phase);

/// How much more the rows add up to than the step takes, as a share of it.
double sum_error(const StepProfile& profile);

/// Shares of the time of a step as usual that each limit explains by itself; the largest names what binds.
struct RooflineVerdict {
  double memory = 0, compute = 0, launch = 0, host = 0;
  const char* bound() const;  ///< "memory", "compute", "launch", "host"
  double most() const;
};
RooflineVerdict verdict(const RooflinePhase& phase);

// roofline_kernels.cpp: what a GPU's kernels ask of an SM.
/// Most registers, most KB of shared memory and least occupancy of them; empty cells where there are none.
std::array<std::string, 3> kernel_cells(const std::vector<KernelProfile>& kernels);
/// The same and each kernel by itself; null and an empty list where there are none.
void add_kernels(const std::vector<KernelProfile>& kernels, nlohmann::ordered_json& record);
/// A row to a kernel of each stage, for below the stages' table; nothing where there are none.
std::string kernels_text(const std::vector<RooflineRow>& rows);

/// All phases in one of the forms of `infer bench -o`.
std::string roofline_text(const std::string& form, const std::vector<RooflinePhase>& phases);
/// Speed against operations per byte, with the roofs; as SVG.
std::string roofline_plot(const std::vector<RooflinePhase>& phases);

/// What the host did, one row per test.
struct HostRow {
  BenchRow about;
  HostProfile profile;
};
std::string host_text(const std::string& form, const std::vector<HostRow>& rows);

}  // namespace infer::tools
