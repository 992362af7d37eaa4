// profile_host(): an engine as it always runs, on a backend whose steps are timed (kernels/timed_backend.h); and what
// it shares with profile_steps().
#include "runtime/profile.h"

#include <algorithm>
#include <chrono>
#include <random>

#include "kernels/timed_backend.h"
#include "runtime/engine_impl.h"

namespace infer {
namespace {

using Clock = std::chrono::steady_clock;
using Look = TimedBackend::Look;

/// From one token to another of the same request.
struct HostCounters {
  Clock::time_point time = Clock::now();
  double cpu_seconds = thread_cpu_seconds();
  EngineStats stats;
};

}  // namespace

std::vector<int32_t> random_ids(int64_t n, int64_t vocab) {
  std::mt19937 random(1234);
  std::uniform_int_distribution<int32_t> draw(0, static_cast<int32_t>(vocab - 1));
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = draw(random);
  return ids;
}

void check_profile(const ProfileOptions& o) {
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

HostProfile profile_host(const Model& model, const EngineOptions& options, const ProfileOptions& what) {
  check_profile(what);
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
