// Level after level: at most the source and one level are in memory at a time. The source is computed again beside each
// level, window by window, so that no logits are kept.
#include "tools/bench_levels.h"

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "tools/bench_explain.h"
#include "tools/bench_run.h"
#include "tools/levels.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

// What `--levels all` and a shape without levels stand for, from large to small.
const std::vector<std::string> kAllLevels = {"f16",  "q8_0",   "q6_k",   "q5_k_m", "q4_k_m",
                                             "q4_0", "iq4_xs", "q3_k_m", "q2_k"};
constexpr int64_t kContext = 512, kKvContext = 2048;  // of the quality of weights, and of caches

constexpr double kSpeedPart = 0.4;  // of a level's time, for the progress bar

/// One row to measure.
struct Level {
  std::string name = {}, path = {}, quant = {}, k_type = {}, v_type = {};
  bool is_source = false;         ///< the model that the others are compared with, as it is
  size_t kv_bytes_per_token = 0;  ///< of a cache; 0 until an engine says
};

[[noreturn]] void refuse(const char* flag, const std::string& why, const std::string& found = {}) {
  throw Error(ErrorKind::usage, flag, why, found);
}

template <class T>
T only(const char* flag, const std::vector<T>& values, T usual) {
  if (values.size() > 1) refuse(flag, "one value only in a table of levels");
  return values.empty() ? usual : values[0];
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

class LevelBench {
 public:
  explicit LevelBench(const BenchFlags& flags) : f_(flags), opener_(flags.model) {
    kv_ = !f_.kv_levels.empty();
    check_flags();
    about_.kv = kv_;
    case_ = {.model = f_.models.empty() ? "random " + f_.shape : f_.models[0],
             .n_prompt = only<int64_t>("-p", f_.n_prompt, 512),
             .n_gen = only<int64_t>("-n", f_.n_gen, 128),
             .depth = only<int64_t>("-d", f_.depth, kv_ ? kKvContext : 0),
             .n_batch = only<int64_t>("-b", f_.n_batch, 2048),
             .n_ubatch = only<int64_t>("-ub", f_.n_ubatch, 0),
             .n_threads = only<int64_t>("-t", f_.n_threads, 0),
             .k_type = only<std::string>("-ctk", f_.k_types, "f16"),
             .v_type = only<std::string>("-ctv", f_.v_types, "f16")};
    opener_.n_threads = case_.n_threads;
    const LoadOptions& load = f_.model.load;
    if (!load.mode.empty()) case_.mode = load.mode;
    if (!load.act.empty()) case_.act = load.act;
    case_.fusion = load.fusion, case_.unfused = load.unfused;
    list_levels();
  }

  int run() {
    try {
      if (!f_.quality_file.empty()) open_reference();
      for (n_done_ = 0; n_done_ < levels_.size() && !interrupted(); ++n_done_) {
        const Level& level = levels_[n_done_];
        progress(0);
        if (f_.progress) note("{}\n", escaped(level.name));
        try {
          measure(level);
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::does_not_fit)
            throw Error(error.kind(), escaped(level.name) + ": " + error.what());
          bar_.clear();
          note("{}: left out: {}\n", escaped(level.name), error.what());
          status_ = static_cast<int>(ErrorKind::does_not_fit);
        }
      }
    } catch (...) {
      print();
      throw;
    }
    print();
    if (!f_.plot.empty() && !rows_.empty() && !interrupted()) write_file(f_.plot, levels_plot(rows_, about_));
    return status_;
  }

 private:
  void check_flags() const {
    const bool quality = !f_.quality_file.empty(), levels = !f_.levels.empty();
    RecordText form(f_.form);  // refuses an unknown one
    if (f_.models.empty() && f_.shape.empty()) refuse("-m", "no model given; see infer bench --help");
    if (!f_.models.empty() && !f_.shape.empty()) refuse("--shape", "needs no model, and -m names one");
    if (levels && kv_) refuse("--kv-levels", "levels of the weights or of the cache, not both");
    if ((levels || kv_) && f_.models.size() > 1) refuse(kv_ ? "--kv-levels" : "--levels", "takes one model");
    if (!f_.shape.empty() && quality) refuse("--quality", "random weights have none");
    if (!f_.plot.empty() && !quality) refuse("--plot", "draws quality against speed: --quality FILE is missing");
    if (!f_.reference.empty() && !quality) refuse("--reference", "--quality FILE is missing");
    if (!f_.reference.empty() && kv_) refuse("--reference", "caches are compared with an f16 cache of the same model");
    if (!f_.both.empty()) refuse("-pg", "not in a table of levels");
    if (kv_ && !(f_.k_types.empty() && f_.v_types.empty()))
      refuse("--kv-levels", "gives the types, and so does -ctk or -ctv");
    if ((levels || (!f_.shape.empty() && !kv_)) && !f_.model.load.quant.empty())
      refuse("--quant", "the levels say which");
    if (!f_.plot.empty()) require_writable(f_.plot);
    if (quality) read_text_file(f_.quality_file);  // before anything takes its time
  }

  // All of them are checked before the first is measured.
  void list_levels() {
    if (kv_) {
      for (const std::string& name : f_.kv_levels) add_kv_level(name);
    } else if (!f_.levels.empty() || !f_.shape.empty()) {
      const bool all = f_.levels.empty() || (f_.levels.size() == 1 && f_.levels[0] == "all");
      for (const std::string& name : all ? kAllLevels : f_.levels) add_level(name);
    } else {
      for (const std::string& path : f_.models)
        levels_.push_back({.name = base_name(path),
                           .path = path,
                           .quant = f_.model.load.quant,
                           .is_source = path == reference_path() && f_.model.load.quant.empty()});
    }
  }

  const std::string& reference_path() const { return f_.reference.empty() ? f_.models[0] : f_.reference; }

  void add_level(const std::string& name) {
    quantize_type(name);
    Level level{.name = name, .quant = name};
    if (f_.shape.empty()) {
      level.path = f_.models[0];
      level.is_source = !plan_quantization(level) && reference_path() == level.path;
    }
    levels_.push_back(std::move(level));
  }

  /// Tells what the rows' lengths do not allow, one line to each kind; whether anything changes at all.
  bool plan_quantization(const Level& level) const {
    std::map<std::string, int64_t> notes;
    bool changes = false;
    QuantizeOptions options;
    options.type = level.quant;
    options.allow_requantize = f_.model.load.allow_requantize;
    options.dry_run = true;
    options.on_tensor = [&](const QuantizedTensor& t) {
      changes = changes || t.from != t.to;
      if (!t.note.empty()) ++notes[t.note];
    };
    quantize(level.path, "", options);
    for (const auto& [text, n] : notes)
      note("{}: {} {}: {}\n", escaped(level.name), n, n == 1 ? "tensor" : "tensors", text);
    return changes;
  }

  void add_kv_level(const std::string& name) {
    const size_t slash = name.find('/');
    Level level{.name = name, .k_type = name.substr(0, slash)};
    level.v_type = slash == std::string::npos ? level.k_type : name.substr(slash + 1);
    level.is_source = true;
    level.quant = f_.model.load.quant;
    if (f_.shape.empty()) {
      level.path = f_.models[0];
      EngineOptions engine;
      engine.n_ctx = case_.depth + case_.n_prompt + case_.n_gen + 2;
      engine.k_type = level.k_type, engine.v_type = level.v_type;
      level.kv_bytes_per_token = Model::plan(level.path, engine, f_.model.load).kv_bytes_per_token;
    }
    levels_.push_back(std::move(level));
  }

  /// `part` of the level under way is done.
  void progress(double part) {
    bar_.update((static_cast<double>(n_done_) + part) / static_cast<double>(levels_.size()));
  }

  Model open(const std::string& path, const std::string& quant) {
    bar_.clear();  // loading has its own
    opener_.path = path;
    opener_.load.quant = quant;
    if (!f_.shape.empty()) return random_model(f_.shape, opener_);
    return opener_.open();
  }

  void open_reference() {
    // Computed as usual, in whatever way the levels are.
    const std::string act = std::exchange(opener_.load.act, "");
    const bool fusion = std::exchange(opener_.load.fusion, true);
    const std::vector<std::string> unfused = std::exchange(opener_.load.unfused, {});
    reference_ = open(reference_path(), kv_ ? f_.model.load.quant : "");
    opener_.load.act = act, opener_.load.fusion = fusion, opener_.load.unfused = unfused;
    announce(*reference_);
    // Levels go where the source went, or nowhere: a table that is half of one device and half of another is none.
    if (on_gpu(*reference_) && opener_.load.device == "auto") opener_.load.device = "cuda";
    const int64_t usual = kv_ ? kKvContext : kContext, n_ctx = f_.n_ctx > 0 ? f_.n_ctx : usual;
    windows_ = cut_windows(*reference_, f_.quality_file, n_ctx, -1, f_.n_windows);
    about_.source = kv_ ? "an f16 cache" : base_name(reference_path());
    about_.text = base_name(f_.quality_file);
    about_.n_windows = static_cast<int64_t>(windows_.ids.size()), about_.n_ctx = windows_.n_ctx;
  }

  void announce(const Model& model) {
    const ModelInfo& info = model.info();
    if (!info.device_note.empty() && !std::exchange(announced_, true))
      note("device: {}; {}\n", info.device, info.device_note);
  }

  // The one model of all caches, the source itself, or another.
  Model model_of(const Level& level) {
    if (reference_ && level.is_source) return *reference_;
    if (!kv_) return open(level.path, level.quant);
    if (!only_model_) only_model_ = open(level.path, level.quant);
    return *only_model_;
  }

  void measure(const Level& level) {
    const Model model = model_of(level);
    announce(model);
    BenchCase c = case_;
    if (!level.path.empty()) c.model = level.path;
    if (kv_) c.k_type = level.k_type, c.v_type = level.v_type;
    if (c.n_ubatch == 0) c.n_ubatch = default_ubatch(model);
    limits_.measure(on_gpu(model), static_cast<int>(c.n_threads), true);
    LevelRow row;
    row.level = level.name;
    row.kv_bytes_per_token = level.kv_bytes_per_token;
    if (!measure_speed(row, model, c)) return;
    if (kv_ && row.kv_bytes_per_token == 0) row.kv_bytes_per_token = row.generation.kv_bytes_per_token;
    progress(kSpeedPart);
    if (reference_) row.quality = measure_quality_of(model, c);
    if (!interrupted()) rows_.push_back(std::move(row));
  }

  bool measure_speed(LevelRow& row, const Model& model, const BenchCase& c) {
    BenchCase prompt = c, generation = c;
    prompt.n_gen = 0, generation.n_prompt = 0;
    row.prompt = describe(prompt, model), row.generation = describe(generation, model);
    for (BenchRow* part : {&row.prompt, &row.generation}) {
      if (part->tokens() > 0 && !measure_row(*part, model, f_.model.load, f_.warmup, f_.repetitions)) return false;
    }
    return true;
  }

  Quality measure_quality_of(const Model& model, const BenchCase& c) {
    EngineOptions options = engine_options(f_.model.load, c), usual = options;
    require_same_vocabulary(model, *reference_, "-m");
    fit_to_windows(options, windows_, model.vocab());
    Engine engine(model, options);
    if (kv_) usual.k_type = usual.v_type = "f16";
    usual.act.clear(), usual.unfused.clear(), usual.fusion = true;
    fit_to_windows(usual, windows_, model.vocab());
    Engine base(*reference_, usual);
    return measure_quality(engine, &base, windows_, options.n_seqs, [this](int64_t n, const Quality&) {
      progress(kSpeedPart + (1 - kSpeedPart) * static_cast<double>(n) / static_cast<double>(windows_.ids.size()));
      return !interrupted();
    });
  }

  void print() {
    bar_.clear();
    for (LevelRow& row : rows_) limits_.put_into(row.prompt), limits_.put_into(row.generation);
    mark_best(rows_);
    write_out(levels_text(f_.form, rows_, about_), true);
  }

  const BenchFlags& f_;
  ModelFlags opener_;
  BenchCase case_;
  bool kv_ = false, announced_ = false;
  std::vector<Level> levels_;
  std::optional<Model> reference_, only_model_;
  Windows windows_;
  LevelsAbout about_;
  Limits limits_;
  std::vector<LevelRow> rows_;
  ProgressBar bar_{"levels", true};
  size_t n_done_ = 0;
  int status_ = 0;
};

}  // namespace

bool wants_levels(const BenchFlags& f) {
  return !f.levels.empty() || !f.kv_levels.empty() || !f.shape.empty() || !f.quality_file.empty() || !f.plot.empty() ||
         !f.reference.empty();
}

int bench_levels(const BenchFlags& flags) { return LevelBench(flags).run(); }

}  // namespace infer::tools
