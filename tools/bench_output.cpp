// Tables and records of `infer bench`, in the columns and keys of llama-bench.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tools/bench_records.h"

#ifndef INFER_BUILD_COMMIT
#define INFER_BUILD_COMMIT "unknown"
#endif
#ifndef INFER_BUILD_NUMBER
#define INFER_BUILD_NUMBER 0
#endif

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

// Weight bytes per second of generation; prompts are bound by arithmetic: operations per second instead.
std::string share(const BenchRow& r) {
  const double rate = mean_deviation(r.rates()).mean;
  if (r.c.n_gen && !r.c.n_prompt) {
    const double gbps = rate * static_cast<double>(r.stream_bytes) / 1e9;
    return fmt::format("{:.1f} GB/s ({:.0f} %)", gbps, 100 * gbps / r.bandwidth_gbps);
  }
  if (r.c.n_gen) return "";
  if (r.on_gpu()) {
    const double tflops = rate * 2 * static_cast<double>(r.matrix_params) / 1e12;
    return fmt::format("{:.1f} TFLOPS ({:.0f} %)", tflops, 100 * tflops / r.tensor_peak_tflops);
  }
  const double gops = rate * 2 * static_cast<double>(r.matrix_params) / 1e9;
  return fmt::format("{:.0f} GOP/s ({:.0f} %)", gops, 100 * gops / r.int8_peak_gops);
}

/// "on", "off", "no ffn"
std::string fusion_text(const BenchRow& r) {
  if (!r.c.fusion) return "off";
  std::string off;
  for (const std::string& stage : r.c.unfused) off += (off.empty() ? "no " : ", ") + stage;
  return off.empty() ? "on" : off;
}

/// How llama-bench says that all layers are on the GPU.
constexpr int kAllLayers = 99;

// In llama-bench's order and widths; a parameter has a column only when it is not at its default throughout.
std::vector<BenchColumn> all_columns() {
  auto number = [](int64_t BenchCase::*field) {
    return [field](const BenchRow& r) { return std::to_string(r.c.*field); };
  };
  auto changed = [](auto BenchCase::*field) {
    return [field](const BenchCase& c) { return c.*field != BenchCase().*field; };
  };
  auto size = [](const BenchRow& r) { return size_text(r.model_size); };
  auto params = [](const BenchRow& r) {
    const double n = static_cast<double>(r.n_params);
    return n < 1e9 ? fmt::format("{:.2f} M", n / 1e6) : fmt::format("{:.2f} B", n / 1e9);
  };
  auto rate = [](const BenchRow& r) {
    const auto m = mean_deviation(r.rates());
    return fmt::format("{:.2f} ± {:.2f}", m.mean, m.deviation);
  };
  return {
      {{"model", 30, false}, [](const BenchRow& r) { return r.model_type; }, nullptr},
      {{"size", 10, true}, size, nullptr},
      {{"params", 10, true}, params, nullptr},
      {{"backend", 10, false}, [](const BenchRow& r) { return r.backend; }, nullptr},
      {{"ngl", 3, true}, [](const BenchRow&) { return std::to_string(kAllLayers); }, nullptr},
      {{"threads", 7, true}, [](const BenchRow& r) { return std::to_string(r.n_threads); }, nullptr},
      {{"n_batch", 7, true}, number(&BenchCase::n_batch), changed(&BenchCase::n_batch)},
      {{"n_ubatch", 8, true}, number(&BenchCase::n_ubatch), changed(&BenchCase::n_ubatch)},
      {{"type_k", 6, true}, [](const BenchRow& r) { return r.c.k_type; }, changed(&BenchCase::k_type)},
      {{"type_v", 6, true}, [](const BenchRow& r) { return r.c.v_type; }, changed(&BenchCase::v_type)},
      {{"mode", 10, true}, [](const BenchRow& r) { return r.c.mode; }, changed(&BenchCase::mode)},
      {{"act", 4, false}, [](const BenchRow& r) { return r.c.act; }, changed(&BenchCase::act)},
      {{"fusion", 6, true}, fusion_text, [](const BenchCase& c) { return !c.fusion || !c.unfused.empty(); }},
      {{"test", 15, true}, [](const BenchRow& r) { return r.test_name(); }, nullptr},
      {{"t/s", 20, true}, rate, nullptr},
  };
}

// Medians, which is what is compared; the column t/s beside them has means, as in llama-bench.
std::vector<BenchColumn> against_columns() {
  const auto rate = [](double r) { return fmt::format("{:.2f}", r); };
  const auto change = [](const BenchRow& r) {
    const Interval& c = r.against->change;
    return fmt::format("{:+.1f} % ({:+.1f} to {:+.1f})", 100 * c.middle, 100 * c.low, 100 * c.high);
  };
  return {{{"old", 10, true}, [=](const BenchRow& r) { return rate(r.against->before.middle); }, nullptr},
          {{"new", 10, true}, [=](const BenchRow& r) { return rate(r.against->after.middle); }, nullptr},
          {{"change", 24, true}, change, nullptr},
          {{"verdict", 7, false}, [](const BenchRow& r) { return to_string(r.against->verdict); }, nullptr}};
}

}  // namespace

ordered_json bench_record(const BenchRow& r) {
  std::vector<int64_t> ns;
  for (double s : r.seconds) ns.push_back(static_cast<int64_t>(s * 1e9));
  const auto time = mean_deviation(r.seconds), rate = mean_deviation(r.rates());
  ordered_json j = machine_record(r);
  j.update({{"n_prompt", r.c.n_prompt},
            {"n_gen", r.c.n_gen},
            {"n_depth", r.c.depth},
            {"test_time", r.test_time},
            {"avg_ns", static_cast<int64_t>(time.mean * 1e9)},
            {"stddev_ns", static_cast<int64_t>(time.deviation * 1e9)},
            {"avg_ts", rate.mean},
            {"stddev_ts", rate.deviation},
            {"samples_ns", ns},
            {"samples_ts", r.rates()}});
  if (r.bandwidth_gbps > 0) j.update(limits_record(r));
  if (r.joules_per_token) j["joules_per_token"] = *r.joules_per_token;
  if (r.deterministic) j["deterministic"] = true;
  if (r.rate_without > 0) j["avg_ts_without_deterministic"] = r.rate_without;
  if (r.against)
    j.update({{"old_median_ts", r.against->before.middle},
              {"median_ts", r.against->after.middle},
              {"change", r.against->change.middle},
              {"change_low", r.against->change.low},
              {"change_high", r.against->change.high},
              {"verdict", to_string(r.against->verdict)}});
  return j;
}

ordered_json machine_record(const BenchRow& r) {
  ordered_json j = {{"build_commit", INFER_BUILD_COMMIT},
                    {"build_number", INFER_BUILD_NUMBER},
                    {"cpu_info", r.cpu_info},
                    {"gpu_info", r.gpu_info},
                    {"backends", r.backend},
                    {"model_filename", r.c.model},
                    {"model_type", r.model_type},
                    {"model_size", r.model_size},
                    {"model_n_params", r.n_params},
                    {"n_batch", r.c.n_batch},
                    {"n_ubatch", r.c.n_ubatch},
                    {"n_threads", r.n_threads},
                    {"type_k", r.c.k_type},
                    {"type_v", r.c.v_type},
                    {"n_gpu_layers", r.on_gpu() ? kAllLayers : 0},
                    {"flash_attn", true},
                    {"mode", r.c.mode},
                    {"act", r.c.act},
                    {"fusion", r.c.fusion}};
  if (!r.c.unfused.empty()) j["unfused"] = r.c.unfused;
  return j;
}

ordered_json limits_record(const BenchRow& r) {
  ordered_json j = {{"stream_bytes", r.stream_bytes}, {"read_bandwidth_gbps", r.bandwidth_gbps}};
  if (r.on_gpu())
    j["tensor_peak_tflops"] = r.tensor_peak_tflops;
  else
    j["int8_peak_gops"] = r.int8_peak_gops;
  return j;
}

std::string last_lines(const BenchRow& row) {
  std::string out;
  if (row.bandwidth_gbps > 0 && row.on_gpu())
    out += fmt::format("limits measured in this run: {:.0f} GB/s read, {:.0f} TFLOPS bf16\n", row.bandwidth_gbps,
                       row.tensor_peak_tflops);
  else if (row.bandwidth_gbps > 0)
    out += fmt::format("limits measured in this run: {:.1f} GB/s read, {:.0f} GOP/s int8\n", row.bandwidth_gbps,
                       row.int8_peak_gops);
  return out + fmt::format("build: {} ({})\n", INFER_BUILD_COMMIT, INFER_BUILD_NUMBER);
}

std::string build_id() {
  return fmt::format("{}.{}.{} {}", INFER_VERSION_MAJOR, INFER_VERSION_MINOR, INFER_VERSION_PATCH, INFER_BUILD_COMMIT);
}

std::string size_text(size_t bytes) {
  const bool small = bytes < (1u << 30);
  return fmt::format("{:.2f} {}", static_cast<double>(bytes) / (small ? 1048576.0 : 1073741824.0),
                     small ? "MiB" : "GiB");
}

std::string BenchRow::test_name() const {
  std::string name;
  if (c.n_prompt) name += fmt::format("pp{}", c.n_prompt);
  if (c.n_gen) name += fmt::format("{}tg{}", name.empty() ? "" : "+", c.n_gen);
  return c.depth ? name + fmt::format(" @ d{}", c.depth) : name;
}

std::vector<double> BenchRow::rates() const {
  std::vector<double> out;
  for (double s : seconds) out.push_back(tokens() / s);
  return out;
}

MeanDeviation mean_deviation(const std::vector<double>& values) {
  MeanDeviation m;
  const double n = static_cast<double>(values.size());
  for (double v : values) m.mean += v / n;
  for (double v : values) m.deviation += (v - m.mean) * (v - m.mean);
  m.deviation = values.size() > 1 ? std::sqrt(m.deviation / (n - 1)) : 0;
  return m;
}

BenchOutput::BenchOutput(const std::string& form, const std::vector<BenchCase>& cases, bool bandwidth, bool energy,
                         bool against)
    : records_(form) {
  for (BenchColumn& c : all_columns())
    if (!c.varies || std::any_of(cases.begin(), cases.end(), c.varies)) columns_.push_back(std::move(c));
  if (bandwidth) columns_.push_back({{"of the limit", 20, true}, share, nullptr});
  const auto joules = [](const BenchRow& r) {
    const double joules = r.joules_per_token.value_or(0);
    return joules > 0 ? fmt::format("{:.4g}", joules) : std::string("-");
  };
  if (energy) columns_.push_back({{"J/token", 9, true}, joules, nullptr});
  if (against)
    for (BenchColumn& c : against_columns()) columns_.push_back(std::move(c));
}

std::string BenchOutput::row(const BenchRow& row) {
  const bool first = n_rows_++ == 0;
  if (first)  // as in llama-bench: layers on a GPU, threads on a CPU
    std::erase_if(columns_, [&](const BenchColumn& c) { return c.head.title == (row.on_gpu() ? "threads" : "ngl"); });
  last_ = row;
  if (!records_.is_table()) return records_.add(bench_record(row));
  std::vector<TableColumn> heads;
  std::vector<std::string> cells;
  for (const BenchColumn& c : columns_) heads.push_back(c.head), cells.push_back(c.text(row));
  return (first ? table_head(heads) : "") + table_row(heads, cells);
}

std::string BenchOutput::end() const {
  if (!records_.is_table()) return records_.end();
  return n_rows_ ? "\n" + last_lines(last_) : "";
}

}  // namespace infer::tools
