// An engine for each way, all over the same weights, and all rows in turn: round after round every way takes the same
// steps, so that what else the machine does meets all of them. The formats of a model change together, since a stage
// that multiplies by several matrices is fused only where these go the same way.
#include "tools/bench_autotune.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <random>

#include "tools/autotune.h"
#include "tools/baseline.h"
#include "tools/batch_run.h"
#include "tools/bench_records.h"
#include "tools/bench_subject.h"
#include "tools/crossover_file.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

constexpr int64_t kRows[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
constexpr int64_t kSteps = 16;  ///< timed as one

void refuse_flags(const BenchFlags& f) {
  const auto refuse = [](bool given, const char* flag) {
    if (given) throw Error(ErrorKind::usage, flag, "means nothing with --autotune");
  };
  refuse(f.many.given, "-npl, --arrival or --sla");
  refuse(f.roofline, "--roofline");
  refuse(f.ladder, "--ladder");
  refuse(f.host_overhead, "--host-overhead");
  refuse(f.bandwidth, "--bw");
  const LoadOptions& load = f.model.load;
  refuse(!load.mode.empty() && load.mode != "auto", "--mode");
  refuse(!load.act.empty() && load.act != "auto", "--act");
  refuse(!load.fusion || !load.unfused.empty(), "--no-fusion");
  refuse(load.debug_sync, "--debug-sync");
}

class Autotune {
 public:
  Autotune(const BenchFlags& f, const BenchSubject& subject) : f_(f), subject_(subject), model_(subject.model()) {
    built_in_ = Engine(model_, options({})).crossovers();
    if (built_in_.empty())
      throw Error(ErrorKind::run, "--autotune", "there is nothing to choose on this device", model_.info().device,
                  "a GPU");
    // Where some weights are quantised, plain ones are few and have no say.
    if (!std::all_of(built_in_.begin(), built_in_.end(), is_plain)) std::erase_if(built_in_, is_plain);
    const bool few = std::any_of(built_in_.begin(), built_in_.end(), has_few);
    usual_ = built_in_.front();
    for (size_t i = 1; i < built_in_.size(); ++i) usual_.format += " " + built_in_[i].format;
    if (!has_program()) usual_.program_most = 0;
    for (const TunedWay way : kTunedWays) {
      if ((way == TunedWay::program && !has_program()) || (way == TunedWay::few && !few)) continue;
      engines_[static_cast<size_t>(way)] = std::make_unique<Engine>(model_, options(way));
    }
  }

  /// False when Ctrl-C came in between.
  bool measure() {
    for (const int64_t rows : kRows) {
      if (f_.progress) note("{} rows\n", rows);
      TunedRows out{rows, {}};
      for (int64_t round = -1; round < f_.repetitions; ++round)  // the first meets every shape once and does not count
        for (const TunedWay way : kTunedWays) {
          Engine* engine = engines_[static_cast<size_t>(way)].get();
          if (!engine || (way == TunedWay::program && rows > Crossover::most_program)) continue;
          const BatchTimes times = run_batch(*engine, {0, kSteps, rows}, model_.vocab(), random_, interrupted);
          if (interrupted()) return false;
          if (round >= 0) out.seconds[static_cast<size_t>(way)].push_back(times.gen / kSteps);
        }
      table_.push_back(out);
    }
    return true;
  }

  std::string text() const { return autotune_text(f_.form, table_, usual_, chosen()); }

  /// For each format that was measured.
  std::vector<Crossover> rows() const {
    std::vector<Crossover> out = built_in_;
    const Crossover chosen = this->chosen();
    for (Crossover& row : out) {
      if (has_program()) row.program_most = chosen.program_most;
      row.few_least = chosen.few_least, row.wide_least = chosen.wide_least;
    }
    return out;
  }

 private:
  static bool is_plain(const Crossover& c) { return c.format == "F32" || c.format == "F16" || c.format == "BF16"; }
  /// F32 weights have no kernels for few rows.
  static bool has_few(const Crossover& c) { return c.few_least < Crossover::never; }
  bool has_program() const { return model_.info().n_experts == 0; }
  Crossover chosen() const { return choose_crossovers(table_, usual_); }

  EngineOptions options(std::optional<TunedWay> way) const {
    EngineOptions o = subject_.engine_options();
    fit_to_batch(o, {0, kSteps, Crossover::most_rows});
    for (Crossover row : built_in_) {
      if (!way) break;
      const Crossover by = forced(*way);
      row.program_most = by.program_most, row.few_least = by.few_least, row.wide_least = by.wide_least;
      o.crossovers.push_back(row);
    }
    return o;
  }

  const BenchFlags& f_;
  const BenchSubject& subject_;
  const Model& model_;
  std::vector<Crossover> built_in_;
  Crossover usual_;
  std::array<std::unique_ptr<Engine>, 4> engines_;
  std::vector<TunedRows> table_;
  std::mt19937 random_{1};
};

}  // namespace

int bench_autotune(const BenchFlags& flags) {
  BenchFlags f = flags;
  f.model.saved_crossovers = false;
  refuse_flags(f);
  RecordText form(f.form);  // refuses an unknown one
  BenchSubject subject(f, "--autotune");
  if (list_gpus().empty())
    throw Error(ErrorKind::run, "--autotune", "measures a GPU: " + list_unusable_devices().at(0));
  const std::string path = crossover_path();
  if (path.empty()) throw Error(ErrorKind::run, "--autotune", "neither XDG_CACHE_HOME nor HOME says where to keep it");
  subject.open();
  Autotune tune(f, subject);
  if (!tune.measure()) return 130;
  write_out(tune.text(), true);
  write_crossovers(path, build_id(), tune.rows());
  note("written to {}: used by this build on this GPU from now on\n", escaped(path));
  return 0;
}

}  // namespace infer::tools
