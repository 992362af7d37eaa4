// profile_steps() and profile_host(): steps on a backend whose ops and steps are timed (kernels/timed_backend.h). The
// first drives the step runner itself, so that it knows what each step holds; the second an engine as it always runs.
#include <algorithm>
#include <chrono>
#include <new>
#include <random>

#include "kernels/timed_backend.h"
#include "runtime/engine_impl.h"

namespace infer {
namespace {

using Clock = std::chrono::steady_clock;
using Look = TimedBackend::Look;

std::vector<KernelProfile> kernels_of(const std::vector<KernelUse>& uses) {
  std::vector<KernelProfile> out;
  for (const KernelUse& k : uses)
    out.push_back({k.name, k.n_launches, k.n_blocks, k.n_threads, k.registers, k.local_bytes, k.shared_bytes,
                   k.blocks_per_sm, k.occupancy});
  return out;
}

std::vector<int32_t> random_ids(int64_t n, int64_t vocab) {
  std::mt19937 random(1234);
  std::uniform_int_distribution<int32_t> draw(0, static_cast<int32_t>(vocab - 1));
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = draw(random);
  return ids;
}

void check(const ProfileOptions& o) {
  const auto require = [](bool good, const char* field, int64_t found, const char* allowed) {
    if (!good) throw Error(ErrorKind::usage, field, "out of range", std::to_string(found), allowed);
  };
  constexpr int64_t kMost = 1 << 24;
  require(o.n_prompt >= 0 && o.n_prompt <= kMost, "n_prompt", o.n_prompt, "0 to 16777216");
  require(o.n_gen >= 0 && o.n_gen <= kMost, "n_gen", o.n_gen, "0 to 16777216");
  require(o.depth >= 0 && o.depth <= kMost, "depth", o.depth, "0 to 16777216");
  require(o.n_seqs >= 1 && o.n_seqs <= 1024, "n_seqs", o.n_seqs, "1 to 1024");
  require(o.repetitions >= 1 && o.repetitions <= 1000, "repetitions", o.repetitions, "1 to 1000");
}

/// The steps of one phase: so many sequences side by side, over and over from the same depth.
class Phase {
 public:
  Phase(const Model::Impl& model, const EngineOptions& options, const ProfileOptions& what)
      : what_(what), prepared_(prepare(model, for_sequences(options, what.n_seqs), timed_)) {
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
    for (int64_t r = -1; r < what_.repetitions; ++r) {  // in turn, so that what else the machine does meets both
      timed_->look_at(Look::ops);
      one_by_one();
      timed_->look_at(Look::steps);
      const auto start = Clock::now();
      what_.n_gen > 0 ? run_ahead() : one_by_one();
      if (r < 0)
        timed_->reset();  // that was the warm-up
      else
        out.wall_seconds += std::chrono::duration<double>(Clock::now() - start).count();
    }
    take_ops(out);
    const StepTally& whole = timed_->steps(Look::steps);
    out.whole_seconds = whole.seconds, out.n_whole_launches = whole.n_launches;
    out.launch_seconds = timed_->launch_seconds();
    out.cache_bytes = timed_->cache_bytes();
    out.device = timed_->describe(), out.n_threads = timed_->n_threads();
    return out;
  }

 private:
  static Engine::Impl::Prepared prepare(const Model::Impl& model, const EngineOptions& options, TimedBackend*& timed) {
    auto backend = std::make_unique<TimedBackend>(make_engine_backend(model, options));
    timed = backend.get();
    return Engine::Impl::prepare(model, options, std::move(backend));
  }

  static EngineOptions for_sequences(EngineOptions options, int64_t n_seqs) {
    options.n_seqs = n_seqs;
    return options;
  }

  int64_t end() const { return what_.depth + what_.n_prompt + what_.n_gen; }

  /// The tokens before the phase.
  void fill() { in_chunks(0, what_.depth, false); }

  void one_by_one() {
    if (what_.n_gen == 0) return in_chunks(what_.depth, end(), true);
    for (int64_t at = what_.depth; at < end(); ++at) step(all_at(at));
  }

  /// One sequence's part of a step.
  struct Part {
    int64_t sequence, position, n;
    bool output;
  };

  /// All sequences from `begin` to `to`, as many tokens at a time as a step has room for.
  void in_chunks(int64_t begin, int64_t to, bool outputs) {
    std::vector<Part> parts;
    int64_t room = chunk_;
    for (int64_t s = 0; s < what_.n_seqs; ++s)
      for (int64_t at = begin; at < to;) {
        const int64_t n = std::min(room, to - at);
        parts.push_back({s, at, n, outputs && at + n >= to});
        at += n, room -= n;
        if (room > 0) continue;
        step(parts);
        parts.clear(), room = chunk_;
      }
    if (!parts.empty()) step(parts);
  }

  /// The token at `position` of every sequence.
  std::vector<Part> all_at(int64_t position) const {
    std::vector<Part> parts;
    for (int64_t s = 0; s < what_.n_seqs; ++s) parts.push_back({s, position, 1, true});
    return parts;
  }

  void step(const std::vector<Part>& parts) {
    start(parts);
    runner_->finish();
    timed_->collect();
  }

  void start(const std::vector<Part>& parts) {
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

  void take_ops(StepProfile& out) const {
    out.n_steps = timed_->steps(Look::ops).n_steps;
    out.n_tokens = what_.repetitions * what_.n_seqs * (what_.n_prompt + what_.n_gen);
    out.step_seconds = timed_->steps(Look::ops).seconds;
    for (const OpTally& t : timed_->ops())
      out.stages.push_back({t.name, t.n_calls, t.n_launches, t.seconds, t.cost.weight_bytes, t.cost.activation_bytes,
                            t.cost.flops, t.call_bytes, kernels_of(timed_->kernels(t.name))});
    out.step_kernels = kernels_of(timed_->step_kernels());
  }

  ProfileOptions what_;
  TimedBackend* timed_ = nullptr;
  Engine::Impl::Prepared prepared_;
  std::optional<StepRunner> runner_;
  std::vector<int32_t> ids_;
  std::vector<std::vector<PageId>> pages_;      ///< of each sequence
  std::vector<std::span<const PageId>> spans_;  ///< the same
  std::vector<StepSequence> step_;
  int64_t chunk_ = 1;
  std::optional<SampleRow> draw_;  ///< the largest logit
};

/// From one token to another of the same request.
struct HostCounters {
  Clock::time_point time = Clock::now();
  double cpu_seconds = thread_cpu_seconds();
  EngineStats stats;
};

}  // namespace

StepProfile profile_steps(const Model& model, const EngineOptions& engine, const ProfileOptions& options) {
  check(options);
  if ((options.n_prompt > 0) == (options.n_gen > 0))
    throw Error(ErrorKind::usage, "profile", "one of n_prompt and n_gen, the other 0");
  try {
    return Phase(model.impl(), engine, options).run();
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, "profile", "out of memory");
  }
}

HostProfile profile_host(const Model& model, const EngineOptions& options, const ProfileOptions& what) {
  check(what);
  if (what.n_gen < 1) throw Error(ErrorKind::usage, "profile", "n_gen is 0: there is nothing to look at");
  auto backend = std::make_unique<TimedBackend>(make_engine_backend(model.impl(), options));
  TimedBackend& timed = *backend;
  Engine::Impl engine(model, options, std::move(backend));
  HostProfile out;
  Result result;
  const auto generate = [&](int64_t n, const TokenCallback& on_token) {
    Request request;
    request.ids = random_ids(what.depth + std::max<int64_t>(1, what.n_prompt), model.vocab());
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.max_tokens = n;
    engine.submit(request, on_token, [&](const Result& r) { result = r; });
    while (engine.step())
      if (what.go_on && !what.go_on()) throw Error(ErrorKind::run, "profile", "cancelled");
    if (result.reason == FinishReason::error) throw Error(ErrorKind::run, result.error);
  };
  generate(std::min<int64_t>(what.n_gen, 4) + 1, nullptr);  // steps of this shape have been seen
  HostCounters first, last;
  bool begun = false;
  generate(what.n_gen + 1, [&](const Token&) {
    if (!begun) timed.look_at(Look::steps);  // waits for what is under way
    (begun ? last : first) = {Clock::now(), thread_cpu_seconds(), engine.stats()};
    begun = true;
    return true;
  });
  timed.collect();
  out.device = timed.describe(), out.n_threads = timed.n_threads();
  out.host_computes = !timed.memory_left();
  out.n_tokens = timed.steps(Look::steps).n_steps;  // one fewer where a step was under way when looking began
  out.n_steps_ahead = last.stats.n_steps_ahead - first.stats.n_steps_ahead;
  out.n_launches =
      last.stats.n_launches + last.stats.n_parallel_regions - first.stats.n_launches - first.stats.n_parallel_regions;
  out.n_waits = last.stats.n_syncs - first.stats.n_syncs;
  out.wall_seconds = std::chrono::duration<double>(last.time - first.time).count();
  out.cpu_seconds = last.cpu_seconds - first.cpu_seconds;
  out.busy_seconds = timed.steps(Look::steps).seconds, out.gap_seconds = timed.steps(Look::steps).gap_seconds;
  out.step_cpu_seconds = timed.steps(Look::steps).cpu_seconds;
  return out;
}

}  // namespace infer
