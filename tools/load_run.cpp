// The two loops of load_run.h around submit() and step().
#include "tools/load_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <thread>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

constexpr double kPatience = 3;  // times the duration that run_at_once() takes at most for each of its parts

/// Requests in flight and what they have felt so far.
class Load {
 public:
  Load(Engine& engine, const LoadClock& clock) : engine_(engine), clock_(clock) {}

  /// `counts`: how long it takes as a whole, and to its first token, is measured.
  void submit(const Request& request, double arrived, bool counts = true) {
    const int64_t key = next_key_++;
    ++result_.n_arrived;
    flying_[key] = {.arrived = arrived, .last = arrived, .n_prompt = std::ssize(request.ids), .counts = counts};
    flying_[key].id = engine_.submit(
        request, [this, key](const Token&) { return token(flying_.at(key)), true; },
        [this, key](const Result& result) { end(key, result); });
  }

  /// False when nothing is left to do.
  bool step() {
    const int64_t ended_before = n_ended_;
    const bool more = engine_.step();
    const EngineStats stats = engine_.stats();
    // Who ended in this step has run in it.
    result_.max_running = std::max(result_.max_running, stats.n_running + n_ended_ - ended_before);
    result_.n_preempted = stats.n_preempted - preempted_before_;
    if (!error_.empty()) throw Error(ErrorKind::run, error_);
    return more;
  }

  /// Forgets what was felt and counted so far; requests that are under way go on and count from now on. Tokens count
  /// until `end`.
  void begin(double now, double end = std::numeric_limits<double>::infinity()) {
    begun_ = now, end_ = end;
    result_ = {};
    result_.n_arrived = in_flight();
    preempted_before_ = engine_.stats().n_preempted;
  }

  int64_t in_flight() const { return std::ssize(flying_); }
  int64_t n_ended() const { return n_ended_; }
  int64_t n_first_tokens() const { return std::ssize(result_.felt.ttft); }

  /// Ends what is under way.
  LoadResult finish() {
    const double now = clock_.now();
    add_unfinished(now);
    result_.seconds = std::min(now, end_) - begun_;
    result_.n_unfinished = in_flight();
    LoadResult out = std::move(result_);
    for (const auto& [key, f] : flying_) engine_.cancel(f.id);
    while (engine_.step()) {
    }
    return out;
  }

 private:
  struct Flying {
    RequestId id = 0;
    double arrived = 0, last = 0;  ///< last: of its tokens
    int64_t n_prompt = 0;
    bool counts = true, has_token = false;
  };

  void token(Flying& f) {
    const double now = clock_.now();
    if (f.has_token)
      result_.felt.itl.push_back(now - f.last);
    else if (f.counts)
      result_.felt.ttft.push_back(now - f.arrived);
    if (now <= end_) {
      ++result_.tokens_out;
      if (!f.has_token) result_.tokens_in += f.n_prompt;
    }
    f.has_token = true;
    f.last = now;
  }

  void end(int64_t key, const Result& result) {
    if (result.reason == FinishReason::error) error_ = result.error;
    const Flying& f = flying_.at(key);
    if (f.counts) result_.felt.e2e.push_back(clock_.now() - f.arrived);
    flying_.erase(key);
    ++n_ended_;
    ++result_.n_finished;
  }

  /// What has lasted longer than everything that ended is news; how long the rest would last is not known.
  void add_unfinished(double now) {
    Latencies& felt = result_.felt;
    const auto longest = [](const std::vector<double>& v) {
      return v.empty() ? 0 : *std::max_element(v.begin(), v.end());
    };
    const double ttft = longest(felt.ttft), itl = longest(felt.itl), e2e = longest(felt.e2e);
    for (const auto& [key, f] : flying_) {
      if (!f.has_token && f.counts && now - f.arrived > ttft) felt.ttft.push_back(now - f.arrived);
      if (f.has_token && now - f.last > itl) felt.itl.push_back(now - f.last);
      if (f.counts && now - f.arrived > e2e) felt.e2e.push_back(now - f.arrived);
    }
  }

  Engine& engine_;
  const LoadClock& clock_;
  LoadResult result_;
  std::map<int64_t, Flying> flying_;
  std::string error_;
  double begun_ = 0, end_ = 0;
  int64_t next_key_ = 0, n_ended_ = 0, preempted_before_ = 0;
};

}  // namespace

LoadClock real_clock() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto now = [start] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const auto wait_until = [now](double time) {
    constexpr double kLookUp = 0.05;  // for Ctrl-C
    std::this_thread::sleep_for(std::chrono::duration<double>(std::clamp(time - now(), 0.0, kLookUp)));
  };
  return {now, wait_until, interrupted};
}

LoadResult run_arrivals(Engine& engine, const RequestSource& source, ArrivalTimes arrivals, double duration,
                        const LoadClock& clock) {
  const double start = clock.now();
  const double end = duration > 0 ? start + duration : std::numeric_limits<double>::infinity();
  Load load(engine, clock);
  load.begin(start, end);
  for (int64_t i = 0; !clock.stopped() && clock.now() < end + duration;) {
    const auto next = [&] { return start + arrivals.next(); };
    for (; next() <= clock.now() && next() < end; arrivals.advance()) load.submit(source(i++), next());
    if (load.step()) continue;
    if (!std::isfinite(next()) || next() >= end) break;
    clock.wait_until(next());
  }
  const bool endless = std::isfinite(arrivals.next());
  LoadResult result = load.finish();
  // Of a process that goes on the idle time after its last request counts, too.
  if (duration > 0 && endless && !clock.stopped()) result.seconds = duration;
  return result;
}

LoadResult run_at_once(Engine& engine, const RequestSource& source, int64_t n, double duration,
                       const LoadClock& clock) {
  Load load(engine, clock);
  int64_t i = 0;
  for (; i < n; ++i) {
    Request r = source(i);
    r.max_tokens = std::max<int64_t>(1, r.max_tokens * (i + 1) / n);
    load.submit(r, clock.now(), false);
  }
  const auto go_on = [&] {
    load.step();
    while (load.in_flight() < n) load.submit(source(i++), clock.now());
  };
  const double warm_end = clock.now() + kPatience * duration;
  while (load.n_ended() < n && !clock.stopped() && clock.now() < warm_end) go_on();
  const double start = clock.now();
  load.begin(start);
  while (!clock.stopped()) {
    const double passed = clock.now() - start;
    if (passed >= kPatience * duration || (passed >= duration && load.n_first_tokens() >= n)) break;
    go_on();
  }
  return load.finish();
}

}  // namespace infer::tools
