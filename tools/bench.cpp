// `infer bench`: speed of prompts and of generation with llama-bench's flags. Tables of levels are in bench_levels.cpp.
#include "tools/bench.h"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "tools/baseline.h"
#include "tools/bench_autotune.h"
#include "tools/bench_batch.h"
#include "tools/bench_explain.h"
#include "tools/bench_flags.h"
#include "tools/bench_levels.h"
#include "tools/bench_load.h"
#include "tools/bench_records.h"
#include "tools/bench_run.h"
#include "tools/bench_startup.h"
#include "tools/bench_sustained.h"
#include "tools/deterministic_cost.h"
#include "tools/terminal.h"

namespace infer::tools {

int bench_tokenizer(ModelFlags& flags, const std::string& file, int64_t repetitions) {
  if (file.empty()) throw Error(ErrorKind::usage, "-f", "--tokenizer needs a text file");
  const Model model = flags.open(true);
  const std::string text = read_text_file(file);
  if (text.empty()) throw Error(ErrorKind::usage, escaped(file), "the file is empty");
  std::vector<double> rates;
  size_t n = 0;
  for (int64_t r = 0; r < repetitions + 1 && !interrupted(); ++r) {
    const auto start = std::chrono::steady_clock::now();
    n = model.tokenize(text, false, false).size();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (r > 0) rates.push_back(static_cast<double>(text.size()) / 1e6 / seconds);  // the first is the warm-up
  }
  const MeanDeviation m = mean_deviation(rates);
  fmt::print("{} bytes, {} tokens, {:.2f} bytes/token, one thread: {:.2f} ± {:.2f} MB/s\n", text.size(), n,
             static_cast<double>(text.size()) / static_cast<double>(n), m.mean, m.deviation);
  return 0;
}

namespace {

// What happens to the rows beside printing: compared with those of an earlier run, kept for a later one.
class Keeper {
 public:
  explicit Keeper(const BenchModes& modes) : modes_(modes) {
    if (!modes.against.empty()) baseline_.emplace(modes.against);
    if (!modes.save.empty()) require_folder_writable(modes.save);
  }
  /// Before rows are measured: whether there is anything to compare it with.
  void require(const BenchRow& row) const {
    if (baseline_) baseline_->samples_of(row);
  }
  void take(BenchRow& row) {
    if (!modes_.save.empty()) records_.push_back(bench_record(row));
    if (!baseline_) return;
    row.against = compare(baseline_->samples_of(row), row.rates(), modes_.tolerance);
    n_slower_ += row.against->verdict == Verdict::slower;
  }
  /// The exit status.
  int end() const {
    if (!modes_.save.empty() && interrupted())
      note("{} is not written: interrupted\n", escaped(modes_.save));
    else if (!modes_.save.empty())
      save_records(modes_.save, records_);
    if (n_slower_ == 0) return 0;
    note("slower than in {} by more than {:g} % and the noise: {} of the tests\n", escaped(modes_.against),
         100 * modes_.tolerance, n_slower_);
    return static_cast<int>(ErrorKind::gate);
  }

 private:
  const BenchModes& modes_;
  std::optional<Baseline> baseline_;
  nlohmann::ordered_json records_ = nlohmann::ordered_json::array();
  int64_t n_slower_ = 0;
};

// The counters of the model's device, if --energy wants and can have them; says why not.
std::optional<EnergyMeter> meter_for(const BenchFlags& f, const Model& model) {
  if (!f.modes.energy) return std::nullopt;
  EnergyMeter meter = EnergyMeter::of_device(model.info().device);
  if (!meter.why_not().empty()) note("J/token cannot be told: {}\n", meter.why_not());
  return meter;
}

int bench_tests(BenchFlags& f) {
  std::vector<BenchCase> cases;
  for (const std::string& path : f.models)
    for (const BenchCase& c : expand(f, path)) cases.push_back(c);
  BenchOutput output(f.form, cases, f.bandwidth, f.modes.energy, !f.modes.against.empty());
  Keeper keeper(f.modes);
  Limits limits;
  const bool depth_curve = wants_depth_curve(f);
  std::vector<BenchRow> measured;
  if (depth_curve) require_writable(f.plot);
  DeterministicCost cost(f.model.load);
  LoadOptions asked = f.model.load;
  asked.deterministic = cost.wanted();
  for (const std::string& path : f.models) {
    f.model.path = path;
    const Model model = f.model.open();
    if (!model.info().device_note.empty()) note("device: {}; {}\n", model.info().device, model.info().device_note);
    if (f.bandwidth) limits.measure(on_gpu(model), f.n_threads.empty() ? 0 : static_cast<int>(f.n_threads[0]));
    std::optional<EnergyMeter> meter = meter_for(f, model);
    const auto row_of = [&](BenchCase c) {
      if (f.n_ubatch.empty()) c.n_ubatch = default_ubatch(model);
      BenchRow row = describe(c, model);
      row.n_threads = static_cast<int>(c.n_threads);
      row.deterministic = cost.wanted();
      return row;
    };
    for (const BenchCase& c : expand(f, path)) keeper.require(row_of(c));
    for (const BenchCase& c : expand(f, path)) {
      if (interrupted()) break;
      BenchRow row = row_of(c);
      if (f.progress) note("{}: {}\n", path, row.test_name());
      limits.put_into(row);
      if (!measure_row(row, model, asked, f.warmup, f.repetitions, meter ? &*meter : nullptr)) break;
      if (cost.measured_on(model)) {
        BenchRow plain = row_of(c);
        if (!measure_row(plain, model, f.model.load, f.warmup, f.repetitions)) break;
        row.rate_without = mean_deviation(plain.rates()).mean;
        cost.add({row.test_name(), mean_deviation(row.rates()).mean, row.rate_without});
      }
      keeper.take(row);
      fmt::print("{}", output.row(row));
      if (depth_curve) measured.push_back(row);
      std::fflush(stdout);
      if (f.delay) std::this_thread::sleep_for(std::chrono::seconds(f.delay));
    }
  }
  fmt::print("{}", output.end());
  if (f.form == "md") fmt::print("{}", cost.text());
  if (depth_curve && !interrupted()) write_depth_curve(f.plot, measured);
  return keeper.end();
}

}  // namespace

/// The modes of many_flags.h.
int bench_many(const BenchFlags& f) {
  if (!f.many.arrivals.empty()) return bench_arrival(f);
  return f.many.targets.empty() ? bench_batch(f) : bench_sla(f);
}

int bench_command(const Args& args) {
  BenchFlags f;
  Arguments a("infer bench -m MODEL [-p 512] [-n 128] [-r 5]",
              "Tokens per second, as llama-bench prints them. Tokenisation and sampling are not in the times.\n");
  a.positional("MODEL", [&f](const std::string& t) { f.models.push_back(t); });
  declare(a, f);
  if (!parse_or_help(a, args)) return 0;
  const bool depth_curve = wants_depth_curve(f);
  check(f.modes, !depth_curve && wants_levels(f), f.tokenizer, f.repetitions,
        f.many.given || wants_explanation(f) || f.autotune);
  f.many.duration = f.modes.duration;
  if (f.autotune) return bench_autotune(f);
  if (f.many.given && !f.roofline) return bench_many(f);
  if (wants_explanation(f)) return bench_explanation(f);
  if (!depth_curve && wants_levels(f)) return bench_levels(f);
  if (f.models.empty()) throw Error(ErrorKind::usage, "-m", "no model given; see infer bench --help");
  if (f.tokenizer) {
    f.model.path = f.models[0];
    return bench_tokenizer(f.model, f.tokenizer_file, f.repetitions);
  }
  if (f.modes.startup_marks) return print_startup_marks(f);
  if (f.modes.startup) return bench_startup(f, args);
  if (f.modes.duration > 0) return bench_sustained(f);
  return bench_tests(f);
}

}  // namespace infer::tools
