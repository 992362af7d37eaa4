// Load in process, piece by piece: units, arrivals, quantiles, the search, and what requests feel by a clock that goes
// on by one second to a step, so that every number is known beforehand.
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "infer.h"
#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/arrival.h"
#include "tools/batch_run.h"
#include "tools/latency.h"
#include "tools/load_run.h"
#include "tools/sla.h"
#include "tools/units.h"

using namespace infer;
using namespace infer::test;
using namespace infer::tools;

namespace {

using Seconds = std::vector<double>;

/// A step takes a second, and nothing else takes time.
LoadClock step_clock() {
  const auto time = std::make_shared<double>(0);
  return {[=] { return *time; }, [=](double until) { *time = until; }, [=] { return *time += 1, false; }};
}

const Model& model() {
  static const Model one = [] {
    LoadOptions load;
    load.device = "cpu";
    load.n_threads = 1;
    return Model::load(tiny_bpe(), load);
  }();
  return one;
}

Engine engine_for(int64_t n_seqs, int64_t n_ubatch = 512, int64_t n_pool = 0) {
  EngineOptions o;
  o.n_ctx = 256;
  o.n_seqs = n_seqs;
  o.n_ubatch = n_ubatch;
  o.n_threads = 1;
  o.n_pool = n_pool;
  return Engine(model(), o);
}

Request request(int64_t i, int64_t n_gen, int64_t n_prompt = 8) {
  std::mt19937 random(static_cast<uint32_t>(i));
  Request r;
  r.ids = random_ids(random, n_prompt, model().vocab());
  r.max_tokens = n_gen;
  r.sampling.temperature = 0;
  r.sampling.ignore_eos = true;
  return r;
}

template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    return error.what();
  }
  return "";
}

std::vector<double> times(const char* text, uint64_t seed, size_t n) {
  ArrivalTimes arrivals(parse_arrival(text), seed);
  std::vector<double> out;
  for (; out.size() < n; arrivals.advance()) out.push_back(arrivals.next());
  return out;
}

}  // namespace

TEST_CASE("units: times and rates have a unit") {
  CHECK(parse_duration("-x", "50ms") == Approx(0.05));
  CHECK(parse_duration("-x", "2.5s") == Approx(2.5));
  CHECK(parse_duration("-x", "1m") == Approx(60));
  CHECK(parse_duration("-x", "300us") == Approx(0.0003));
  CHECK(parse_duration("-x", "2h") == Approx(7200));
  CHECK(parse_rate("-x", "4/s") == Approx(4));
  CHECK(parse_rate("-x", "90/m") == Approx(1.5));
  CHECK(parse_rate("-x", "0.5/s") == Approx(0.5));
  for (const char* bad : {"", "50", "ms", "-1s", "1d", "1 s", "1sx", "0s", "1e3s", "nans", "1.2.3s", "8000000h"}) {
    INFO(bad);
    CHECK(contains(refusal([&] { parse_duration("--duration", bad); }), "--duration"));
  }
  for (const char* bad : {"", "4", "/s", "4/", "4/ms", "0/s", "-4/s", "4/s/s", "x/s"}) {
    INFO(bad);
    CHECK(contains(refusal([&] { parse_rate("--arrival", bad); }), "--arrival"));
  }
  CHECK(duration_text(0.00123) == "1.23 ms");
  CHECK(duration_text(0.0123) == "12.3 ms");
  CHECK(duration_text(0.5) == "500 ms");
  CHECK(duration_text(60) == "60.0 s");
}

TEST_CASE("arrivals: fixed, all at once, and by chance at the mean rate and by the seed") {
  CHECK(times("fixed:2/s", 1, 4) == Seconds{0, 0.5, 1, 1.5});
  const Seconds all = times("all:3", 1, 4);
  CHECK(all[2] == 0);
  CHECK(std::isinf(all[3]));
  const Seconds some = times("poisson:4/s", 1, 4000);
  CHECK(some == times("poisson:4/s", 1, 4000));
  CHECK(some != times("poisson:4/s", 2, 4000));
  CHECK(some.back() == Approx(1000).epsilon(0.05));
  double squares = 0, last = 0;
  for (const double t : some) {
    REQUIRE(t > last);
    squares += (t - last) * (t - last) / 4000, last = t;
  }
  CHECK(squares == Approx(2 * 0.25 * 0.25).epsilon(0.1));  // of an exponential distribution, twice the squared mean
  for (const char* bad :
       {"", "poisson", "poisson:", "poisson:4", "all:0", "all:x", "all:4/s", "burst:4/s", "fixed:1"}) {
    INFO(bad);
    CHECK(contains(refusal([&] { parse_arrival(bad); }), "--arrival"));
  }
}

TEST_CASE("latencies: quantiles are values that were measured") {
  Seconds v;
  for (int i = 100; i > 0; --i) v.push_back(i);
  CHECK(percentile(v, 50) == 50);
  CHECK(percentile(v, 90) == 90);
  CHECK(percentile(v, 99) == 99);
  CHECK(percentile({3}, 1) == 3);
  CHECK(percentile({1, 2}, 99) == 2);
  CHECK(std::isnan(percentile({}, 50)));
}

TEST_CASE("latencies: targets are parsed, kept and missed") {
  const std::vector<Target> targets = parse_targets("itl.p99<50ms,ttft.p50<2s");
  REQUIRE(targets.size() == 2);
  CHECK(targets[0].name() == "itl.p99");
  CHECK(targets[0].limit == Approx(0.05));
  CHECK(targets[1].name() == "ttft.p50");
  Latencies felt;
  felt.itl = {0.01, 0.02, 0.049}, felt.ttft = {1, 1, 9};
  CHECK(targets[0].kept(felt));
  CHECK(targets[1].kept(felt));
  felt.itl.push_back(0.05);
  CHECK_FALSE(targets[0].kept(felt));
  felt.ttft.clear();
  CHECK_FALSE(targets[1].kept(felt));  // nothing is known
  for (const char* bad : {"", "itl", "itl.p99", "itl.p99<", "itl.p99<50", "itl.p95<5ms", "foo.p99<5ms", "itl.p99>5ms",
                          "itl.p99<5ms,", "<.", "p99<5ms"}) {
    INFO(bad);
    CHECK(contains(refusal([&] { parse_targets(bad); }), "--sla"));
  }
}

TEST_CASE("search: doubling and bisection find the edge, with few probes") {
  for (const int64_t edge : {0, 1, 2, 3, 7, 8, 21, 31}) {
    std::set<int64_t> probed;
    const auto keeps = [&](int64_t n) {
      CHECK(probed.insert(n).second);  // never twice
      return n <= edge;
    };
    const SlaAnswer a = search_most(1024, keeps, [] { return false; });
    INFO(edge);
    CHECK(a.most == edge);
    CHECK(a.first_miss == edge + 1);
    CHECK(probed.size() <= 10);
  }
  std::vector<int64_t> probed;
  const auto up_to = [&probed](int64_t edge) {
    return [&probed, edge](int64_t n) { return probed.push_back(n), n <= edge; };
  };
  const SlaAnswer large = search_most(1024, up_to(700), [] { return false; });
  CHECK(large.most <= 700);
  CHECK(large.first_miss > 700);
  CHECK(large.first_miss - large.most <= large.most / 16);
  CHECK(probed.size() <= 16);
  probed.clear();
  const SlaAnswer capped = search_most(24, up_to(1000), [] { return false; });
  CHECK(probed == std::vector<int64_t>{1, 2, 4, 8, 16, 24});
  CHECK(capped.most == 24);
  CHECK(capped.first_miss == 0);
}

TEST_CASE("load: what requests feel when each is alone") {
  Engine engine = engine_for(4);
  const auto source = [](int64_t i) { return request(i, 3); };
  const LoadResult r = run_arrivals(engine, source, ArrivalTimes(parse_arrival("fixed:15/m"), 1), 16, step_clock());
  CHECK(r.n_arrived == 4);
  CHECK(r.n_finished == 4);
  CHECK(r.n_unfinished == 0);
  CHECK(r.felt.ttft == Seconds(4, 1));
  CHECK(r.felt.itl == Seconds(8, 1));
  CHECK(r.felt.e2e == Seconds(4, 3));
  CHECK(r.tokens_in == 4 * 8);
  CHECK(r.tokens_out == 4 * 3);
  CHECK(r.seconds == 16);
  CHECK(r.max_running == 1);
  CHECK(r.n_preempted == 0);
}

TEST_CASE("load: who cannot be served waits, and the waiting counts") {
  Engine engine = engine_for(1);
  const auto source = [](int64_t i) { return request(i, 3); };
  const LoadResult r = run_arrivals(engine, source, ArrivalTimes(parse_arrival("fixed:1/s"), 1), 10, step_clock());
  CHECK(r.n_arrived == 10);
  CHECK(r.n_finished == 6);  // three seconds each, and the run ends after twice its time
  CHECK(r.n_unfinished == 4);
  CHECK(r.max_running == 1);
  CHECK(r.seconds == 10);
  CHECK(r.tokens_out == 10);  // those of later seconds do not count
  // The i-th comes at i and has its first token at 3 i + 1. The oldest that was never served waits since 7.
  Seconds want = {1, 3, 5, 7, 9, 11, 13};
  CHECK(Seconds(r.felt.ttft.begin(), r.felt.ttft.begin() + 6) == Seconds(want.begin(), want.begin() + 6));
  CHECK(percentile(r.felt.ttft, 99) >= 13);
  const EngineStats s = engine.stats();  // nothing is left behind
  CHECK(s.n_running + s.n_waiting == 0);
  CHECK(s.n_free_pages + s.n_cached_pages == s.n_pages);
}

TEST_CASE("load: all at once share the engine, and give way when pages run out") {
  Engine engine = engine_for(4, 512, 256);
  const auto source = [](int64_t i) { return request(i, 100, 20); };
  const LoadResult r = run_arrivals(engine, source, ArrivalTimes(parse_arrival("all:6"), 1), 0, step_clock());
  CHECK(r.n_finished == 6);
  CHECK(r.max_running == 4);
  CHECK(r.n_preempted > 0);
  CHECK(r.tokens_out == 600);
  CHECK(r.felt.itl.size() == 6 * 99);
  CHECK(r.seconds == Approx(*std::max_element(r.felt.e2e.begin(), r.felt.e2e.end())));
  Engine again = engine_for(4);
  const LoadResult timed = run_arrivals(again, source, ArrivalTimes(parse_arrival("all:2"), 1), 5000, step_clock());
  CHECK(timed.n_finished == 2);
  CHECK(timed.seconds == 100);  // when the last has come to its end, not after all of the time
}

TEST_CASE("load: a number of requests is always under way") {
  Engine engine = engine_for(3);
  const auto source = [](int64_t i) { return request(i, 6); };
  const LoadResult r = run_at_once(engine, source, 3, 12, step_clock());
  CHECK(r.seconds == 12);
  CHECK(r.max_running == 3);
  CHECK(r.tokens_out == 3 * 11);  // the clock is asked once more after the last step
  CHECK(r.felt.itl == Seconds(r.felt.itl.size(), 1));
  CHECK(r.felt.ttft == Seconds(r.felt.ttft.size(), 1));
  CHECK(r.felt.ttft.size() == 6);  // each of the three places has a new one every six seconds
  CHECK(r.felt.itl.size() == 33 - 6);
  for (const double s : r.felt.e2e) CHECK(s == 6);
  CHECK(engine.stats().n_running == 0);
}

TEST_CASE("batch: all prompts first, then a token for each in every step") {
  std::mt19937 random(1);
  const auto go_on = [] { return false; };
  for (const BatchCase& c : {BatchCase{40, 5, 4, false}, BatchCase{64, 3, 2, false}, BatchCase{0, 4, 3, false},
                             BatchCase{50, 4, 8, true}, BatchCase{33, 0, 2, false}, BatchCase{31, 2, 5, true}}) {
    INFO("PP " << c.n_prompt << " TG " << c.n_gen << " B " << c.n_seqs << (c.shared_prompt ? " shared" : ""));
    EngineOptions o;
    o.n_threads = 1;
    fit_to_batch(o, c);
    Engine engine(model(), o);
    for (int repetition = 0; repetition < 2; ++repetition) {
      const EngineStats before = engine.stats();
      const BatchTimes t = run_batch(engine, c, model().vocab(), random, go_on);
      const EngineStats after = engine.stats();
      CHECK(after.n_tokens - before.n_tokens == c.kv_tokens());
      CHECK(after.n_steps - before.n_steps == c.n_gen + (c.n_prompt > 0 ? 1 : 0));
      CHECK(after.n_preempted == 0);
      CHECK((t.prompt > 0) == (c.n_prompt > 0));
      CHECK((t.gen > 0) == (c.n_gen > 0));
      CHECK(t.prompt + t.gen == Approx(after.forward_seconds - before.forward_seconds));
    }
  }
}
