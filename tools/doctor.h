// The parts of `infer doctor`: findings about the machine and about one model on it, each with a number, a mark, and
// advice where something is off. Parts find out and judge; doctor.cpp prints.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/common.h"
#include "tools/machine.h"
#include "tools/nvml.h"

namespace infer::tools {

enum class Mark {
  plain,  ///< a fact, neither good nor bad
  good,
  warn,  ///< runs, but slower or smaller than it could
  bad,   ///< makes running impossible
};

struct Finding {
  std::string key;   ///< of its JSON: "read_bandwidth"
  std::string text;  ///< for people: "32.1 GB/s"
  nlohmann::ordered_json value;
  Mark mark = Mark::plain;
  std::string advice;  ///< one line; empty when there is nothing to do
};

struct Section {
  std::string key, title;
  std::vector<Finding> findings;
  void add(std::string name, std::string text, nlohmann::ordered_json value, Mark mark = Mark::plain,
           std::string advice = "") {
    findings.push_back({std::move(name), std::move(text), std::move(value), mark, std::move(advice)});
  }
};

/// Limits that were measured for the sections before, for what is said of the model.
struct Measured {
  double cpu_gbps = 0, cpu_gops = 0, gpu_gbps = 0, gpu_tflops = 0;
  size_t cpu_cache_bytes = 0;
};

struct DoctorFlags {
  ModelFlags model;
  EngineFlags engine;
  std::string form = "text";
  bool measure = true;
  int n_threads() const { return model.n_threads > 0 ? static_cast<int>(model.n_threads) : 0; }
};

/// What is off with a GPU, from what CUDA and NVML know of it; either may be missing. `loaded`: read again under load.
Section judge_gpu(const GpuInfo* cuda, const GpuState* state, const GpuState* loaded);
/// What copies reach, beside what the slot allows.
void judge_copies(const GpuCopySpeeds& copies, const GpuState* loaded, Section& section);
/// One section to a GPU, or one that says why there is none. Measures the GPU that would be used.
std::vector<Section> check_gpus(const DoctorFlags& flags, Measured& measured);

Section judge_cpu(const MachineFacts& machine, const HostInfo& host, int n_threads);
Section judge_memory(const MachineFacts& machine, const HostInfo& host);
std::vector<Section> check_host(const DoctorFlags& flags, Measured& measured);

Section check_storage(const DoctorFlags& flags);

/// What a model will reach with these limits. `n_ctx`: tokens of a full context.
struct Reach {
  double empty_tok_s = 0, full_tok_s = 0, prompt_tok_s = 0;
};
Reach reach(size_t stream_bytes, size_t kv_bytes_per_token, int64_t n_ctx, double gbps, double operations_per_token,
            double operations_per_second);
/// `status`: the exit status that the model asks for.
Section check_model(const DoctorFlags& flags, const Measured& measured, int& status);

}  // namespace infer::tools
