// Measuring for ladder.h. The weights of each step are made in memory from the model given, one format at a time. A
// slow step is repeated less often, so that the naive ones do not take the day.
#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "tools/bench_explain.h"
#include "tools/bench_run.h"
#include "tools/ladder.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

constexpr int64_t kPrompt = 128, kGenerated = 32;  // of a ladder, unless -p and -n say otherwise
constexpr double kEnoughSeconds = 20;              // of one test

[[noreturn]] void refuse(const char* flag, const std::string& why, const std::string& found = {}) {
  throw Error(ErrorKind::usage, flag, why, found);
}

template <class T>
T only(const char* flag, const std::vector<T>& values, T usual) {
  if (values.size() > 1) refuse(flag, "one value only in a ladder");
  return values.empty() ? usual : values[0];
}

class LadderBench {
 public:
  explicit LadderBench(const BenchFlags& flags) : f_(flags), opener_(flags.model) {
    const LoadOptions& load = f_.model.load;
    if (!load.quant.empty()) refuse("--quant", "the steps of a ladder say which");
    if (!load.isa.empty() || !load.mode.empty() || !load.act.empty() || !load.fusion || !load.unfused.empty())
      refuse("--ladder", "has steps for what --isa, --mode, --act and --no-fusion choose");
    if (load.device == "ref") refuse("--ladder", "the reference has one way to compute", "--device ref");
    case_ = {.model = f_.models.empty() ? "random " + f_.shape : f_.models[0],
             .n_prompt = only<int64_t>("-p", f_.n_prompt, kPrompt),
             .n_gen = only<int64_t>("-n", f_.n_gen, kGenerated),
             .depth = only<int64_t>("-d", f_.depth, 0),
             .n_batch = only<int64_t>("-b", f_.n_batch, 2048),
             .n_ubatch = only<int64_t>("-ub", f_.n_ubatch, 0),
             .n_threads = only<int64_t>("-t", f_.n_threads, 0),
             .k_type = only<std::string>("-ctk", f_.k_types, "f16"),
             .v_type = only<std::string>("-ctv", f_.v_types, "f16")};
    if (case_.n_prompt == 0 && case_.n_gen == 0) refuse("-p", "neither a prompt nor generation to measure");
    opener_.load.allow_requantize = true;
  }

  int run() {
    plan();
    try {
      for (const LadderStep& step : plan_.steps) {
        if (interrupted()) break;
        bar_.update(static_cast<double>(n_done_++) / static_cast<double>(plan_.steps.size()));
        if (f_.progress) note("{}\n", step.name);
        try {
          measure(step);
        } catch (const Error& error) {  // of a device: a type or a mode that it lacks
          plan_.omissions.push_back({step.name.substr(step.name.find_first_not_of(' ')), error.what()});
          if (error.kind() == ErrorKind::run || (rows_.empty() && n_done_ == plan_.steps.size())) throw;
          if (error.kind() == ErrorKind::does_not_fit) status_ = static_cast<int>(error.kind());
        }
      }
    } catch (...) {
      print();
      throw;
    }
    print();
    if (!f_.plot.empty() && !rows_.empty() && !interrupted()) write_file(f_.plot, ladder_plot(rows_));
    return status_;
  }

 private:
  /// Opens the model in 16 bits to learn what it is and where it goes.
  void plan() {
    const std::string sixteen = has_bf16() ? "BF16" : "F16";
    const Model& model = open(sixteen);
    const ModelInfo& info = model.info();
    if (!info.device_note.empty()) note("device: {}; {}\n", info.device, info.device_note);
    const std::string four = info.dim % 256 == 0 && info.ffn_dim % 256 == 0 ? "Q4_K_M" : "Q4_0";
    // All steps go where the first one went: a ladder over two devices is none.
    if (opener_.load.device == "auto") opener_.load.device = on_gpu(model) ? "cuda" : "cpu";
    if (case_.n_ubatch == 0) case_.n_ubatch = default_ubatch(model);
    if (on_gpu(model)) {
      plan_ = gpu_ladder(sixteen, four);
      return;
    }
    std::vector<std::string> isas, missing;
    for (const char* isa : {"scalar", "avx2", "avx512"}) (runs(model, isa) ? isas : missing).push_back(isa);
    EngineOptions options;
    options.n_ctx = 64, options.n_threads = static_cast<int>(case_.n_threads);
    plan_ = cpu_ladder(sixteen, four, isas, Engine(model, options).stats().n_threads);
    for (const std::string& isa : missing) plan_.omissions.push_back({isa, "this CPU lacks it"});
  }

  bool has_bf16() const {
    if (!f_.shape.empty()) return false;
    for (const TensorInfo& t : Model::inspect(f_.models[0]).info.tensors)
      if (t.type == "BF16") return true;
    return false;
  }

  static bool runs(const Model& model, const std::string& isa) {
    EngineOptions options;
    options.n_ctx = 64, options.isa = isa;
    try {
      Engine engine(model, options);
      return true;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::usage) throw;
      return false;
    }
  }

  const Model& open(const std::string& quant) {
    if (model_ && opener_.load.quant == quant) return *model_;
    bar_.clear();  // loading has its own
    model_.reset();
    opener_.load.quant = quant;
    model_ = open_model(opener_, f_.models.empty() ? "" : f_.models[0], f_.shape);
    return *model_;
  }

  void measure(const LadderStep& step) {
    const Model& model = open(step.quant);
    limits_.measure(on_gpu(model), static_cast<int>(case_.n_threads), true);
    LoadOptions load = opener_.load;
    load.isa = step.isa, load.mode = step.mode, load.fusion = step.fusion, load.unfused = step.unfused;
    BenchCase c = case_;
    c.mode = step.mode.empty() ? "auto" : step.mode, c.fusion = step.fusion, c.unfused = step.unfused;
    if (step.n_threads > 0) c.n_threads = step.n_threads;
    LadderRow row;
    row.step = step;
    BenchCase prompt = c, generation = c;
    prompt.n_gen = 0, generation.n_prompt = 0;
    row.prompt = describe(prompt, model), row.generation = describe(generation, model);
    for (BenchRow* part : {&row.prompt, &row.generation})
      if (part->tokens() > 0 && !measure_part(*part, model, load)) return;
    rows_.push_back(std::move(row));
  }

  bool measure_part(BenchRow& row, const Model& model, const LoadOptions& load) const {
    BenchRunner runner(model, load, row.c);
    row.n_threads = runner.engine().stats().n_threads;
    if (f_.warmup) runner.warm_up();
    double spent = 0;
    for (int64_t r = 0; r < f_.repetitions && spent < kEnoughSeconds && !interrupted(); ++r) {
      row.seconds.push_back(runner.measure());
      spent += row.seconds.back();
    }
    return !interrupted();
  }

  void print() {
    bar_.clear();
    for (LadderRow& row : rows_) limits_.put_into(row.prompt), limits_.put_into(row.generation);
    write_out(ladder_text(f_.form, rows_, plan_.omissions), true);
  }

  const BenchFlags& f_;
  ModelFlags opener_;
  BenchCase case_;
  LadderPlan plan_;
  std::optional<Model> model_;
  Limits limits_;
  std::vector<LadderRow> rows_;
  ProgressBar bar_{"ladder", true};
  size_t n_done_ = 0;
  int status_ = 0;
};

}  // namespace

int bench_ladder(const BenchFlags& flags) { return LadderBench(flags).run(); }

}  // namespace infer::tools
