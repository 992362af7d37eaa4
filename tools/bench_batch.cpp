// A row to a number of sequences, in the columns and keys of llama-batched-bench. Each has an engine of its own size,
// so that what fits is found out row by row.
#include "tools/bench_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/batch_run.h"
#include "tools/bench_explain.h"
#include "tools/bench_records.h"
#include "tools/bench_subject.h"
#include "tools/charts.h"
#include "tools/deterministic_cost.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

/// Means over the repetitions.
struct BatchRow {
  BatchCase c;
  BenchRow machine;
  std::vector<double> prompt, gen;             ///< seconds
  double prompt_without = 0, gen_without = 0;  ///< mean seconds without --deterministic; 0: not measured
  double prompt_seconds() const { return mean_deviation(prompt).mean; }
  double gen_seconds() const { return mean_deviation(gen).mean; }
  double seconds() const { return prompt_seconds() + gen_seconds(); }
  /// Weights that the steps of generation read, each of them all; of experts at least what one sequence meets.
  double gbps() const {
    return static_cast<double>(c.n_gen) * static_cast<double>(machine.stream_bytes) / gen_seconds() / 1e9;
  }
};

double rate(int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0; }

double rate_deviation(int64_t n, const std::vector<double>& seconds) {
  std::vector<double> rates;
  for (const double s : seconds) rates.push_back(rate(n, s));
  return mean_deviation(rates).deviation;
}

std::vector<TableColumn> columns(bool bandwidth) {
  std::vector<TableColumn> all = {
      {"PP", 6, true},       {"TG", 6, true},     {"B", 4, true},        {"N_KV", 6, true}, {"T_PP s", 8, true},
      {"S_PP t/s", 8, true}, {"T_TG s", 8, true}, {"S_TG t/s", 8, true}, {"T s", 8, true},  {"S t/s", 8, true}};
  if (bandwidth) all.push_back({"TG of the limit", 20, true});
  return all;
}

std::vector<std::string> cells(const BatchRow& r) {
  const BatchCase& c = r.c;
  const auto seconds = [](double s) { return fmt::format("{:.3f}", s); };
  const auto per_second = [](int64_t n, double s) { return fmt::format("{:.2f}", rate(n, s)); };
  std::vector<std::string> out = {std::to_string(c.n_prompt),  std::to_string(c.n_gen),
                                  std::to_string(c.n_seqs),    std::to_string(c.kv_tokens()),
                                  seconds(r.prompt_seconds()), per_second(c.prompt_tokens(), r.prompt_seconds()),
                                  seconds(r.gen_seconds()),    per_second(c.gen_tokens(), r.gen_seconds()),
                                  seconds(r.seconds()),        per_second(c.kv_tokens(), r.seconds())};
  const double limit = r.machine.bandwidth_gbps;
  if (limit > 0)
    out.push_back(c.n_gen > 0 ? fmt::format("{:.1f} GB/s ({:.0f} %)", r.gbps(), 100 * r.gbps() / limit) : "");
  return out;
}

ordered_json record(const BatchRow& r) {
  const BatchCase& c = r.c;
  ordered_json j = machine_record(r.machine);
  j.update({{"is_pp_shared", c.shared_prompt},
            {"pp", c.n_prompt},
            {"tg", c.n_gen},
            {"pl", c.n_seqs},
            {"n_kv", c.kv_tokens()},
            {"t_pp", r.prompt_seconds()},
            {"speed_pp", rate(c.prompt_tokens(), r.prompt_seconds())},
            {"t_tg", r.gen_seconds()},
            {"speed_tg", rate(c.gen_tokens(), r.gen_seconds())},
            {"t", r.seconds()},
            {"speed", rate(c.kv_tokens(), r.seconds())},
            {"stddev_speed_pp", rate_deviation(c.prompt_tokens(), r.prompt)},
            {"stddev_speed_tg", rate_deviation(c.gen_tokens(), r.gen)},
            {"samples_t_pp", r.prompt},
            {"samples_t_tg", r.gen}});
  if (r.machine.deterministic) j["deterministic"] = true;
  if (r.prompt_without > 0) j["speed_pp_without_deterministic"] = rate(c.prompt_tokens(), r.prompt_without);
  if (r.gen_without > 0) j["speed_tg_without_deterministic"] = rate(c.gen_tokens(), r.gen_without);
  if (r.machine.bandwidth_gbps > 0) {
    j.update(limits_record(r.machine));
    if (c.n_gen > 0) j["tg_gbps"] = r.gbps(), j["tg_share_of_limit"] = r.gbps() / r.machine.bandwidth_gbps;
  }
  return j;
}

std::vector<BatchCase> all_cases(const ManyFlags& f) {
  const std::vector<int64_t> prompts = f.n_prompt.empty() ? std::vector<int64_t>{128} : f.n_prompt;
  const std::vector<int64_t> gens = f.n_gen.empty() ? std::vector<int64_t>{128} : f.n_gen;
  std::vector<BatchCase> all;
  for (const int64_t pp : prompts)
    for (const int64_t tg : gens)
      for (const int64_t n : f.n_seqs) {
        if (n < 1 || n > 1024) throw Error(ErrorKind::usage, "-npl", "out of range", std::to_string(n), "1 to 1024");
        if (pp + tg == 0) throw Error(ErrorKind::usage, "-ntg", "neither prompt nor generation to measure");
        all.push_back({pp, tg, n, f.shared_prompt});
      }
  return all;
}

BatchRow measure(const BenchFlags& f, const BenchSubject& subject, const BatchCase& c, bool deterministic) {
  EngineOptions options = subject.engine_options();
  options.deterministic = deterministic;
  fit_to_batch(options, c);
  Engine engine(subject.model(), options);
  warn_slow_cache(engine.stats().cache_note);
  std::mt19937 random(static_cast<uint32_t>(f.many.seed));
  BatchRow row{c, subject.row(), {}, {}};
  row.machine.n_threads = engine.stats().n_threads;
  row.machine.deterministic = deterministic;
  const auto run = [&](const BatchCase& one) {
    return run_batch(engine, one, subject.model().vocab(), random, interrupted);
  };
  if (f.warmup) {  // a GPU meets every shape once before it counts
    BatchCase warm = c;
    if (!on_gpu(subject.model())) warm.n_prompt = std::min<int64_t>(c.n_prompt, 32);
    warm.n_gen = std::min<int64_t>(c.n_gen, 2);
    run(warm);
  }
  for (int64_t r = 0; r < f.repetitions && !interrupted(); ++r) {
    const BatchTimes times = run(c);
    row.prompt.push_back(times.prompt), row.gen.push_back(times.gen);
  }
  return row;
}

/// The same case without --deterministic.
void measure_cost(const BenchFlags& f, const BenchSubject& subject, const std::string& name, BatchRow& row,
                  DeterministicCost& cost) {
  if (!cost.measured_on(subject.model())) return;
  const BatchRow plain = measure(f, subject, row.c, false);
  row.prompt_without = plain.prompt_seconds(), row.gen_without = plain.gen_seconds();
  const auto add = [&](const char* what, int64_t n, double with, double without) {
    if (n > 0) cost.add({name + ", " + what, rate(n, with), rate(n, without)});
  };
  add("prompts", row.c.prompt_tokens(), row.prompt_seconds(), row.prompt_without);
  add("generation", row.c.gen_tokens(), row.gen_seconds(), row.gen_without);
}

/// Prompt and generation over the number of sequences, for each pair of lengths.
void draw(const std::string& path, const std::vector<BatchRow>& rows) {
  if (rows.empty()) return;
  std::vector<CurveChart::Line> lines;
  const auto line = [&](const std::string& name) -> CurveChart::Line& {
    for (CurveChart::Line& l : lines)
      if (l.name == name) return l;
    return lines.emplace_back(CurveChart::Line{name, {}});
  };
  for (const BatchRow& r : rows) {
    const auto n = static_cast<double>(r.c.n_seqs);
    if (r.c.n_gen > 0)
      line(fmt::format("tg{} after pp{}", r.c.n_gen, r.c.n_prompt))
          .points.emplace_back(n, rate(r.c.gen_tokens(), r.gen_seconds()));
    if (r.c.n_prompt > 0)
      line(fmt::format("pp{}", r.c.n_prompt)).points.emplace_back(n, rate(r.c.prompt_tokens(), r.prompt_seconds()));
  }
  write_file(path, batch_curve_svg(rows[0].machine.model_type, lines));
}

void refuse_flags_of_load(const ManyFlags& f) {
  auto refuse = [](bool given, const char* flag) {
    if (given) throw Error(ErrorKind::usage, flag, "means nothing with -npl");
  };
  refuse(!f.arrivals.empty(), "--arrival");
  refuse(!f.targets.empty(), "--sla");
  refuse(f.duration > 0, "--duration");
  refuse(!f.prompts_file.empty(), "--prompts");
  refuse(f.n_pool > 0, "--kv-pool");
}

}  // namespace

int bench_batch(const BenchFlags& given) {
  BenchFlags f = given;
  if (f.many.n_seqs.empty())
    throw Error(ErrorKind::usage, "-npl", "missing, or --arrival or --sla: one of them says what to measure");
  refuse_flags_of_load(f.many);
  RowStream out(f.form, columns(f.bandwidth));
  const std::vector<BatchCase> cases = all_cases(f.many);
  DeterministicCost cost(f.model.load);
  BenchSubject subject(f, "-npl");
  if (!f.plot.empty()) require_writable(f.plot);
  subject.open();
  std::vector<BatchRow> measured;
  int status = 0;
  for (const BatchCase& c : cases) {
    if (interrupted()) break;
    const std::string name = fmt::format("PP {} TG {} B {}", c.n_prompt, c.n_gen, c.n_seqs);
    if (f.progress) note("{}\n", name);
    measured_or_told(name, status, [&] {
      BatchRow row = measure(f, subject, c, cost.wanted());
      if (!interrupted()) measure_cost(f, subject, name, row, cost);
      if (interrupted()) return;
      out.add(cells(row), record(row));
      measured.push_back(row);
    });
  }
  out.end(cost.text() + last_lines(subject.row()));
  if (!f.plot.empty() && !interrupted()) draw(f.plot, measured);
  return status;
}

}  // namespace infer::tools
