// The parts of `infer bench`: what to measure, one measured row, and the four forms of output.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tools/common.h"
#include "tools/compare.h"
#include "tools/table.h"

namespace infer::tools {

/// One combination of parameters.
struct BenchCase {
  std::string model;
  int64_t n_prompt = 0, n_gen = 0, depth = 0;
  int64_t n_batch = 2048, n_ubatch = 512, n_threads = 0;
  std::string k_type = "f16", v_type = "f16";
  std::string mode = "auto", act = "auto";
  bool fusion = true;
  std::vector<std::string> unfused = {};  ///< stages, where not all of them
};

struct BenchRow {
  BenchCase c;
  std::string model_type;  ///< "llama 134.5M Q4_1"
  std::string backend;     ///< "CPU", "CUDA"
  std::string gpu_info;    ///< "NVIDIA H200"; empty on the CPU
  std::string cpu_info, test_time;
  size_t model_size = 0, stream_bytes = 0, kv_bytes_per_token = 0;
  int64_t n_params = 0, matrix_params = 0;
  int n_threads = 0;
  std::vector<double> seconds;             ///< one per repetition
  double bandwidth_gbps = 0;               ///< measured limits, 0 when not asked for
  double int8_peak_gops = 0;               ///< of a CPU
  double tensor_peak_tflops = 0;           ///< of a GPU
  std::optional<double> joules_per_token;  ///< absent: not asked for; 0: not told, or measured for too short a time
  std::optional<Comparison> against;
  bool deterministic = false;  ///< asked for
  double rate_without = 0;     ///< tok/s without --deterministic; 0: not measured

  bool on_gpu() const { return !gpu_info.empty(); }
  std::string test_name() const;  ///< "pp512", "tg128 @ d4096"
  double tokens() const { return static_cast<double>(c.n_prompt + c.n_gen); }
  std::vector<double> rates() const;  ///< tok/s of every repetition
};

/// Mean and sample standard deviation.
struct MeanDeviation {
  double mean = 0, deviation = 0;
};
MeanDeviation mean_deviation(const std::vector<double>& values);

struct BenchColumn {
  TableColumn head;
  std::function<std::string(const BenchRow&)> text;
  std::function<bool(const BenchCase&)> varies;  ///< null: always shown
};

/// The rows of one run in the form md, csv, json or jsonl, as text to print as they come.
class BenchOutput {
 public:
  /// Throws Error(usage) for another form. The cases say which parameters deserve a column.
  BenchOutput(const std::string& form, const std::vector<BenchCase>& cases, bool bandwidth, bool energy = false,
              bool against = false);
  std::string row(const BenchRow& row);  ///< with the head before the first
  std::string end() const;

 private:
  RecordText records_;
  std::vector<BenchColumn> columns_;
  int64_t n_rows_ = 0;
  BenchRow last_;
};

/// `infer bench --tokenizer`: MB/s of encoding a file.
int bench_tokenizer(ModelFlags& model, const std::string& file, int64_t repetitions);

}  // namespace infer::tools
