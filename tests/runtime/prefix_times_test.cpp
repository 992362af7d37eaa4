// Times by prefixes: what each prefix runs, on any device, what becomes of the steps after it, and that the differences
// add up to the step whatever the noise.
#include <iostream>
#include <numeric>

#include "runtime/engine_impl.h"
#include "runtime/prefix_times.h"
#include "runtime/profile.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/ref_double.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace prefix_times_test {  // not a nameless one: files are built in groups, whose names it hides

using Look = TimedBackend::Look;

/// What has been asked of a Device.
struct Log {
  std::vector<std::string> ops;  ///< of the run at hand
  std::vector<int64_t> n_ops;    ///< of each run, in the order of runs; a draw counts
  int64_t n_prefixes = 0;
};

/// A device with memory and draws of its own, for which time goes by with its ops alone: each takes a second, and
/// `saved` less when another one follows it in the same step, as kernels that overlap do. By itself it takes two.
class Device final : public test::RefDouble {
 public:
  explicit Device(Log& log) : log_(log) {}
  std::optional<size_t> memory_left() const override { return size_t{1} << 30; }
  void embed(const EmbedArgs& a) override { op("embed"), RefDouble::embed(a); }
  void attention(const AttentionArgs& a) override { op("attention"), RefDouble::attention(a); }
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override {
    op("gather"), RefDouble::gather(x, rows, out);
  }
  void attn_in(const AttnInArgs& a) override { op("attn_in"), RefDouble::attn_in(a); }
  void attn_out(const AttnOutArgs& a) override { op("attn_out"), RefDouble::attn_out(a); }
  void ffn(const FfnArgs& a) override { op("ffn"), RefDouble::ffn(a); }
  void logits(const LogitsArgs& a) override { op("logits"), RefDouble::logits(a); }
  void sample(const SampleArgs& a) override { op("sample"), sample_on_host(a); }
  void run(uint64_t key, const std::function<void()>& fn) override { begin(key == 0), fn(); }
  void run_prefix(uint64_t, int64_t n_ops, const std::function<void()>& fn) override {
    ++log_.n_prefixes;
    begin(false), fn();
    CHECK(static_cast<int64_t>(log_.ops.size()) == n_ops);
  }
  uint64_t mark() override {
    log_.n_ops.push_back(static_cast<int64_t>(log_.ops.size()));
    return 0;
  }
  uint64_t stamp() override { return static_cast<uint64_t>(100 * now_ + 0.5); }
  double seconds_between(uint64_t first, uint64_t second) override { return static_cast<double>(second - first) / 100; }
  size_t cache_bytes() const override { return 1; }
  BackendStats stats() const override { return {}; }

 private:
  void begin(bool alone) { alone_ = alone, log_.ops.clear(); }
  void op(const char* name) {
    const double saved = log_.ops.empty() || alone_ ? 0 : 0.25;
    now_ += (alone_ ? 2 : 1) - saved;
    log_.ops.push_back(name);
  }
  Log& log_;
  double now_ = 0;
  bool alone_ = false;
};

Model load(const std::string& device, DType weights = DType::F32, int64_t n_experts = 0, const std::string& mode = {}) {
  static const test::Folder folder;
  test::TinyModel tiny;
  tiny.weights = weights, tiny.n_experts = n_experts;
  if (device == "cuda") tiny.dim = 256, tiny.ffn_dim = 512, tiny.n_layers = 3;
  const std::string path =
      folder / (device + std::to_string(static_cast<int>(weights)) + "-" + std::to_string(n_experts) + ".gguf");
  test::write_tiny_model(path, tiny);
  LoadOptions options;
  options.device = device, options.mode = mode, options.n_threads = 2;
  return Model::load(path, options);
}

EngineOptions engine_options() {
  EngineOptions o;
  o.n_ctx = 256, o.n_threads = 2;
  return o;
}

std::vector<OpTime> ops_of(std::initializer_list<double> seconds) {
  std::vector<OpTime> out;
  for (double s : seconds) out.push_back({"op", s});
  return out;
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

/// The same step of so many sequences over and over: after each prefix the next whole step has the logits that it had
/// without.
void check_prefixes(const Model& model, const EngineOptions& options, int64_t n_seqs) {
  EngineOptions own = options;
  own.n_seqs = n_seqs;
  auto timed_backend = std::make_unique<TimedBackend>(make_engine_backend(model.impl(), own));
  TimedBackend& timed = *timed_backend;
  const auto prepared = Engine::Impl::prepare(model.impl(), own, std::move(timed_backend));
  const Model::Impl& m = model.impl();
  StepRunner runner(m.config, m.weights, *prepared.backend, prepared.plan.limits, m.config.vocab);
  const std::vector<int32_t> ids{3, 1, 4, 1, 5};
  std::vector<PageId> pages(static_cast<size_t>(n_seqs));
  std::iota(pages.begin(), pages.end(), 0);
  const auto step = [&](int64_t position, int64_t n) {
    std::vector<StepSequence> sequences;
    for (size_t s = 0; s < pages.size(); ++s)
      sequences.push_back({std::span(ids).subspan(static_cast<size_t>(position), static_cast<size_t>(n)), position,
                           std::span(pages).subspan(s, 1), 1});
    runner.start(sequences), runner.finish(), timed.collect();
  };
  const auto logits = [&] {
    std::vector<float> rows(static_cast<size_t>(n_seqs * m.config.vocab));
    for (int64_t s = 0; s < n_seqs; ++s)
      runner.logits(
          s, std::span(rows).subspan(static_cast<size_t>(s * m.config.vocab), static_cast<size_t>(m.config.vocab)));
    return rows;
  };
  step(0, 4);
  timed.look_at(Look::ops);
  step(4, 1);
  const auto n_ops = static_cast<int64_t>(timed.last_ops().size());
  CHECK(n_ops == 2 + 4 * m.config.n_layers);
  timed.look_at(Look::prefixes);
  step(4, 1), step(4, 1);
  const std::vector<float> wanted = logits();
  for (int64_t n = 0; n < n_ops; ++n) {
    timed.cut_after(n);
    step(4, 1);
    if (n == n_ops / 2) step(4, 1);
    timed.cut_after(TimedBackend::kWhole);
    step(4, 1);
    INFO("after a prefix of " << n << " ops");
    CHECK(logits() == wanted);
  }
}

TEST_CASE("prefixes: the differences add up to the step, noise and all") {
  PrefixTimes times(ops_of({5, 1, 1, 1}), 99);
  REQUIRE(times.lengths() == std::vector<int64_t>{0, 1, 2, 3, 4});
  const double seconds[] = {0.5, 2, 1.75, 4, 6};  // the second is faster than the first
  for (size_t i = 0; i < 5; ++i)
    for (double noise : {0.0, 0.25, 100.0}) times.add(i, seconds[i] + noise - 0.25);
  CHECK(times.op_seconds() == std::vector<double>{1.5, -0.25, 2.25, 2});
  CHECK(times.step_seconds() == 6);
  CHECK(sum(times.op_seconds()) + times.seconds(0) == times.step_seconds());
  times.forget();
  times.add(0, 1), times.add(0, 2);
  CHECK(times.seconds(0) == 1.5);
}

TEST_CASE("prefixes: between two that are timed, ops by themselves divide the time") {
  PrefixTimes times(ops_of({1, 3, 2, 2, 6}), 3);
  REQUIRE(times.lengths() == std::vector<int64_t>{0, 2, 5});
  times.add(0, 1), times.add(1, 9), times.add(2, 14);
  CHECK(times.op_seconds() == std::vector<double>{2, 6, 1, 1, 3});
  PrefixTimes whole(ops_of({0, 0}), 0);
  REQUIRE(whole.lengths() == std::vector<int64_t>{0, 2});
  whole.add(0, 0), whole.add(1, 4);
  CHECK(whole.op_seconds() == std::vector<double>{2, 2});
}

TEST_CASE("prefixes: each runs its ops and no more, and their times are those of the step, not of ops by themselves") {
  const Model model = load("ref");
  Log log;
  ProfileOptions what;
  what.n_gen = 3, what.depth = 4, what.repetitions = 1, what.n_seqs = 2;
  const StepProfile p = profile_steps(model.impl(), engine_options(), what, std::make_unique<Device>(log));
  const int64_t n_layers = model.info().n_layers, n_ops = 3 + 4 * n_layers;  // embed, logits, sample
  CHECK(p.n_prefix_ops == n_ops);
  CHECK(p.n_prefixes == n_ops + 1);
  // From each pass of them: a whole step and a prefix in turn, the prefixes longer and longer.
  int64_t n_passes = 0;
  for (size_t i = 0; i + static_cast<size_t>(2 * n_ops + 1) < log.n_ops.size(); ++i) {
    bool is_pass = true;
    for (int64_t n = 1; n <= n_ops; ++n)  // nothing runs where no op does
      is_pass = is_pass && log.n_ops[i + static_cast<size_t>(2 * n)] == n_ops &&
                log.n_ops[i + static_cast<size_t>(2 * n) + 1] == n;
    n_passes += is_pass;
  }
  CHECK(n_passes >= 4);
  CHECK(log.n_prefixes == n_passes * (n_ops - 1));
  double stages = 0;
  for (const StageProfile& s : p.stages) {
    INFO(s.stage);
    stages += s.seconds;
    CHECK(s.seconds == Approx(static_cast<double>(s.n_calls) * (s.stage == "embed" ? 1 : 0.75)));
  }
  CHECK(stages == Approx(p.step_seconds));
  CHECK(p.step_seconds == Approx(p.whole_seconds));
}

TEST_CASE("prefixes: those of a prompt's steps, however many steps there are") {
  const Model model = load("ref");
  Log log;
  ProfileOptions what;
  what.n_prompt = 20, what.repetitions = 2;
  EngineOptions options = engine_options();
  options.n_batch = options.n_ubatch = 8;
  const StepProfile p = profile_steps(model.impl(), options, what, std::make_unique<Device>(log));
  CHECK(p.n_steps == 2 * 3);
  CHECK(p.step_seconds == Approx(p.whole_seconds));
  double stages = 0;
  for (const StageProfile& s : p.stages) stages += s.seconds;
  CHECK(stages == Approx(p.step_seconds));
}

TEST_CASE("prefixes: a step after one is the step that it was before") {
  for (const char* device : {"cpu", "ref"})
    for (const int64_t n_experts : {0, 6}) check_prefixes(load(device, DType::Q8_0, n_experts), engine_options(), 2);
}

TEST_CASE("cuda prefixes: a step after one is the step that it was before, recorded or not") {
  bool has_gpu = false;
  for (const std::string& device : list_devices()) has_gpu = has_gpu || device.starts_with("cuda");
  if (!has_gpu) {
    std::cout << "SKIPPED: no CUDA device" << std::endl;
    WARN("SKIPPED: no CUDA device; no prefix of a step was run on one");
    return;
  }
  for (const DType weights : {DType::BF16, DType::Q8_0}) {
    for (const char* mode : {"auto", "graph", "eager"})
      for (const int64_t n_seqs : {1, 2, 8}) {
        INFO("mode " << mode << ", " << n_seqs << " sequences");
        check_prefixes(load("cuda", weights, 0, mode), engine_options(), n_seqs);
      }
    const Model model = load("cuda", weights);
    ProfileOptions what;
    what.n_gen = 4, what.repetitions = 1;
    for (const int64_t n_seqs : {1, 8}) {
      what.n_seqs = n_seqs;
      const StepProfile p = profile_steps(model, engine_options(), what);
      double stages = 0;
      for (const StageProfile& s : p.stages) stages += s.seconds;
      CHECK(p.n_prefixes == p.n_prefix_ops + 1);
      CHECK(p.n_prefix_ops == 3 + 4 * model.info().n_layers);
      CHECK(stages < p.step_seconds);  // the rest is before the first
    }
  }
}

}  // namespace prefix_times_test
