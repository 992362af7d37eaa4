// profile_steps(): steps on a backend whose ops, prefixes and steps are timed (kernels/timed_backend.h). It drives the
// step runner itself, so that it knows what each step holds.
#include <algorithm>
#include <chrono>
#include <new>

#include "kernels/timed_backend.h"
#include "runtime/engine_impl.h"
#include "runtime/prefix_times.h"
#include "runtime/profile.h"

namespace infer {
namespace {

using Clock = std::chrono::steady_clock;
using Look = TimedBackend::Look;

// Prefixes are timed over and over for about so long, but so many times at least, and not more often than helps.
constexpr double kPrefixSeconds = 4;
constexpr int64_t kLeastPasses = 3, kMostPasses = 9;

std::vector<KernelProfile> kernels_of(const std::vector<KernelUse>& uses) {
  std::vector<KernelProfile> out;
  for (const KernelUse& k : uses)
    out.push_back({k.name, k.n_launches, k.n_blocks, k.n_threads, k.registers, k.local_bytes, k.shared_bytes,
                   k.blocks_per_sm, k.occupancy});
  return out;
}

/// The steps of one phase: so many sequences side by side, over and over from the same depth.
class Phase {
 public:
  Phase(const Model::Impl& model, const EngineOptions& options, const ProfileOptions& what,
        std::unique_ptr<Backend> backend)
      : what_(what), prepared_(prepare(model, for_sequences(options, what.n_seqs), std::move(backend), timed_)) {
    const StepLimits& limits = prepared_.plan.limits;
    const int64_t n = end();
    if (n > limits.n_ctx)
      throw Error(ErrorKind::usage, "profile", "longer than the context", std::to_string(n) + " tokens",
                  "at most " + std::to_string(limits.n_ctx));
    if (what.n_seqs > limits.max_tokens)
      throw Error(ErrorKind::usage, "n_seqs", "more sequences than tokens in a step", std::to_string(what.n_seqs),
                  "at most " + std::to_string(limits.max_tokens));
    runner_.emplace(model.config, model.weights, *prepared_.backend, limits, model.config.vocab);
    ids_ = random_ids(n, model.config.vocab);
    const auto pages_each = static_cast<PageId>((n + kPageTokens - 1) / kPageTokens);
    for (PageId s = 0; s < what.n_seqs; ++s) {
      pages_.emplace_back();
      for (PageId page = 0; page < pages_each; ++page) pages_.back().push_back(s * pages_each + page);
      spans_.emplace_back(pages_.back());
    }
    chunk_ = limits.max_tokens;
    if (prepared_.backend->samples(SampleRow{})) draw_.emplace();
  }

  StepProfile run() {
    StepProfile out;
    fill();
    warm_up();
    int64_t n_passes = 0;
    std::vector<Pass> by_ops, usual;
    Pass ops_before, usual_before;
    for (int64_t r = 1; r <= what_.repetitions; ++r) {  // in turn, so that what else the machine does meets all
      timed_->look_at(Look::ops);
      one_by_one();
      by_ops.push_back(pass_since(Look::ops, ops_before));
      const double wall = as_usual();
      usual.push_back(pass_since(Look::steps, usual_before));
      usual.back().wall = wall;
      for (; n_passes < n_passes_ * r / what_.repetitions; ++n_passes) time_prefixes();
    }
    take_ops(out, median(by_ops));
    if (!cut_steps_.empty()) take_prefixes(out);
    const Pass& whole = median(usual);
    const auto n = static_cast<double>(what_.repetitions);
    out.whole_seconds = n * whole.seconds, out.wall_seconds = n * whole.wall;
    out.n_whole_launches = timed_->steps(Look::steps).n_launches;
    out.launch_seconds = timed_->launch_seconds();
    out.cache_bytes = timed_->cache_bytes();
    out.device = timed_->describe(), out.n_threads = timed_->n_threads();
    return out;
  }

 private:
  /// The times of one repetition.
  struct Pass {
    double seconds = 0, wall = 0;  ///< of its steps; the latter as usual only
    std::vector<double> ops;       ///< of each of TimedBackend::ops()
  };
  /// What has been added up since `before`, which becomes what there is now.
  Pass pass_since(Look look, Pass& before) const {
    Pass now;
    now.seconds = timed_->steps(look).seconds;
    for (const OpTally& t : timed_->ops()) now.ops.push_back(t.seconds);
    Pass pass = now;
    pass.seconds -= before.seconds;
    for (size_t i = 0; i < before.ops.size(); ++i) pass.ops[i] -= before.ops[i];
    before = std::move(now);
    return pass;
  }
  /// Of an even number the quicker one of the two in the middle: one that met other work would bend a mean.
  static const Pass& median(std::vector<Pass>& passes) {
    const auto middle = passes.begin() + static_cast<std::ptrdiff_t>((passes.size() - 1) / 2);
    std::nth_element(passes.begin(), middle, passes.end(),
                     [](const Pass& a, const Pass& b) { return a.seconds < b.seconds; });
    return *middle;
  }

  static Engine::Impl::Prepared prepare(const Model::Impl& model, const EngineOptions& options,
                                        std::unique_ptr<Backend> inner, TimedBackend*& timed) {
    auto backend = std::make_unique<TimedBackend>(std::move(inner));
    timed = backend.get();
    return Engine::Impl::prepare(model, options, std::move(backend));
  }

  static EngineOptions for_sequences(EngineOptions options, int64_t n_seqs) {
    options.n_seqs = n_seqs;
    return options;
  }

  int64_t end() const { return what_.depth + what_.n_prompt + what_.n_gen; }

  /// The tokens before the phase.
  void fill() {
    for (const Parts& parts : chunks(0, what_.depth, false)) step(parts);
  }

  void one_by_one() {
    if (what_.n_gen == 0)
      for (const Parts& parts : chunks(what_.depth, end(), true)) step(parts);
    else
      for (int64_t at = what_.depth; at < end(); ++at) step(all_at(at));
  }

  /// The steps of a phase as they always run; seconds on the wall.
  double as_usual() {
    timed_->look_at(Look::steps);
    const auto start = Clock::now();
    what_.n_gen > 0 ? run_ahead() : one_by_one();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  /// What is there after the first time: kernels, recorded steps, and how long all of it takes.
  void warm_up() {
    timed_->look_at(Look::ops);
    one_by_one();
    const double wall = as_usual();
    if (timed_->memory_left()) {  // a device of its own
      choose_prefixes(wall);
      const auto start = Clock::now();
      time_prefixes();
      const double pass = std::chrono::duration<double>(Clock::now() - start).count();
      n_passes_ = pass * kMostPasses < kPrefixSeconds ? kMostPasses : static_cast<int64_t>(kPrefixSeconds / pass);
      n_passes_ = std::max(n_passes_, kLeastPasses);
      for (CutStep& step : cut_steps_) step.times.forget();
    }
    timed_->reset();
  }

  /// One sequence's part of a step.
  struct Part {
    int64_t sequence, position, n;
    bool output;
  };
  using Parts = std::vector<Part>;

  /// A step whose prefixes are timed.
  struct CutStep {
    Parts parts;
    PrefixTimes times;
  };

  /// A phase of generation has the step in its middle cut, behind each op. A prompt has all steps cut, and where that
  /// would take too long not behind each op: it is no recorded step, and its ops take by themselves about what they
  /// take in it. `wall`: seconds of the phase.
  void choose_prefixes(double wall) {
    const bool generates = what_.n_gen > 0;
    constexpr double kPhases = 1.5;  // a pass takes of them for each prefix: the whole, and half of it on average
    const double affordable = kPrefixSeconds / kLeastPasses / (kPhases * wall);
    timed_->look_at(Look::ops);
    for (const Parts& parts : generates ? std::vector<Parts>{all_at(what_.depth + (what_.n_gen - 1) / 2)}
                                        : chunks(what_.depth, end(), true)) {
      step(parts);
      const std::vector<OpTime>& ops = timed_->last_ops();
      const auto all = static_cast<int64_t>(ops.size()) + 1;
      cut_steps_.push_back({parts, {ops, generates || affordable > all ? all : static_cast<int64_t>(affordable)}});
    }
  }

  /// Each prefix once. A whole step goes before it, so that caches are as they always are when it begins, and the host
  /// is ahead of the device.
  void time_prefixes() {
    timed_->look_at(Look::prefixes);
    for (CutStep& step : cut_steps_) {
      const std::vector<int64_t>& lengths = step.times.lengths();
      for (size_t i = 0; i < lengths.size(); ++i) {
        timed_->cut_after(TimedBackend::kWhole);
        start(step.parts);
        if (lengths[i] < lengths.back()) timed_->cut_after(lengths[i]);
        start(step.parts);
        runner_->finish();
        runner_->finish();
        timed_->collect();
        step.times.add(i, timed_->last_seconds());
      }
    }
  }

  /// All sequences from `begin` to `to`, as many tokens at a time as a step has room for.
  std::vector<Parts> chunks(int64_t begin, int64_t to, bool outputs) const {
    std::vector<Parts> out;
    Parts parts;
    int64_t room = chunk_;
    for (int64_t s = 0; s < what_.n_seqs; ++s)
      for (int64_t at = begin; at < to;) {
        const int64_t n = std::min(room, to - at);
        parts.push_back({s, at, n, outputs && at + n >= to});
        at += n, room -= n;
        if (room > 0) continue;
        out.push_back(std::move(parts));
        parts.clear(), room = chunk_;
      }
    if (!parts.empty()) out.push_back(std::move(parts));
    return out;
  }

  /// The token at `position` of every sequence.
  Parts all_at(int64_t position) const {
    Parts parts;
    for (int64_t s = 0; s < what_.n_seqs; ++s) parts.push_back({s, position, 1, true});
    return parts;
  }

  void step(const Parts& parts) {
    start(parts);
    runner_->finish();
    timed_->collect();
  }

  void start(const Parts& parts) {
    if (what_.go_on && !what_.go_on()) throw Error(ErrorKind::run, "profile", "cancelled");
    std::vector<TimedBackend::Share> shares;
    step_.clear();
    for (const Part& part : parts) {
      StepSequence sequence;
      sequence.ids = std::span(ids_).subspan(static_cast<size_t>(part.position), static_cast<size_t>(part.n));
      sequence.position = part.position;
      sequence.pages = spans_[static_cast<size_t>(part.sequence)];
      sequence.n_outputs = part.output ? 1 : 0;
      if (part.output && draw_) sequence.draw = &*draw_;
      step_.push_back(sequence);
      shares.push_back({part.position, part.n});
    }
    timed_->expect(std::move(shares));
    runner_->start(step_);
  }

  /// Token after token as the engine does it: where the device draws, a step begins before the host has seen the last.
  void run_ahead() {
    start(all_at(what_.depth));
    for (int64_t at = what_.depth + 1; at < end(); ++at) {
      const bool ahead = runner_->can_start_next();
      if (ahead) runner_->start_next(spans_);
      runner_->finish();
      if (!ahead) start(all_at(at));
    }
    runner_->finish();
    timed_->collect();
  }

  void take_ops(StepProfile& out, const Pass& pass) const {
    const auto n = static_cast<double>(what_.repetitions);
    out.n_steps = timed_->steps(Look::ops).n_steps;
    out.n_tokens = what_.repetitions * what_.n_seqs * (what_.n_prompt + what_.n_gen);
    out.step_seconds = n * pass.seconds;
    for (size_t i = 0; i < timed_->ops().size(); ++i) {
      const OpTally& t = timed_->ops()[i];
      out.stages.push_back({t.name, t.n_calls, t.n_launches, n * pass.ops[i], t.cost.weight_bytes,
                            t.cost.activation_bytes, t.cost.flops, t.call_bytes, kernels_of(timed_->kernels(t.name))});
    }
    out.step_kernels = kernels_of(timed_->step_kernels());
  }

  /// Instead of the times of ops by themselves.
  void take_prefixes(StepProfile& out) const {
    out.step_seconds = 0;
    for (StageProfile& stage : out.stages) stage.seconds = 0;
    for (const CutStep& step : cut_steps_) {
      const PrefixTimes& times = step.times;
      const auto n = static_cast<double>(what_.n_gen > 0 ? out.n_steps : what_.repetitions);  // of such steps
      out.n_prefixes += static_cast<int64_t>(times.lengths().size());
      out.n_prefix_ops += static_cast<int64_t>(times.ops().size());
      out.step_seconds += n * times.step_seconds();
      const std::vector<double> seconds = times.op_seconds();
      for (StageProfile& stage : out.stages)
        for (size_t i = 0; i < seconds.size(); ++i)
          if (times.ops()[i].name == stage.stage) stage.seconds += n * seconds[i];
    }
  }

  ProfileOptions what_;
  TimedBackend* timed_ = nullptr;
  Engine::Impl::Prepared prepared_;
  std::optional<StepRunner> runner_;
  std::vector<int32_t> ids_;
  std::vector<std::vector<PageId>> pages_;      ///< of each sequence
  std::vector<std::span<const PageId>> spans_;  ///< the same
  std::vector<StepSequence> step_;
  std::vector<CutStep> cut_steps_;  ///< none where ops are timed by themselves
  int64_t n_passes_ = 0, chunk_ = 1;
  std::optional<SampleRow> draw_;  ///< the largest logit
};

}  // namespace

StepProfile profile_steps(const Model& model, const EngineOptions& engine, const ProfileOptions& options) {
  return profile_steps(model.impl(), engine, options, make_engine_backend(model.impl(), engine));
}

StepProfile profile_steps(const Model::Impl& model, const EngineOptions& engine, const ProfileOptions& options,
                          std::unique_ptr<Backend> backend) {
  check_profile(options);
  if ((options.n_prompt > 0) == (options.n_gen > 0))
    throw Error(ErrorKind::usage, "profile", "one of n_prompt and n_gen, the other 0");
  try {
    return Phase(model, engine, options, std::move(backend)).run();
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, "profile", "out of memory");
  }
}

}  // namespace infer
