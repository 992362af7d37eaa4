// Running one step ahead of the host: a double of a device that draws tokens, over the oracle. Its draws reach the
// host's memory only when the host waits for them, as they would on a device, and it keeps the order of all calls.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <limits>

#include "runtime/engine_impl.h"
#include "tests/catch.h"
#include "tests/runtime/ref_double.h"

using namespace infer;

namespace {

using Ids = std::vector<TokenId>;

/// What happened, for the tests: "run", "sample 1", "wait 1" ...
struct Log {
  std::vector<std::string> calls;
  int64_t n_waits = 0;
  std::function<void(int64_t n_sampled, float* logits, int64_t vocab)> spoil;  ///< may change a row before its draw
};

class Double final : public test::RefDouble {
 public:
  explicit Double(Log& log) : log_(log) {}
  void download(void* dst, const void* src, size_t bytes) override {
    ++n_syncs_;
    RefDouble::download(dst, src, bytes);
  }
  void wait() override {
    ++log_.n_waits;
    ++n_syncs_;
    publish(n_marks_);
  }
  void run(uint64_t key, const std::function<void()>& fn) override {
    if (key != 0) log_.calls.push_back("run");
    RefDouble::run(key, fn);
  }
  BackendStats stats() const override {
    BackendStats stats = RefDouble::stats();
    stats.syncs = n_syncs_;
    return stats;
  }

  void sample(const SampleArgs& args) override {
    SampleArgs a = args;
    const auto n = static_cast<size_t>(a.logits.dims[0]);
    if (log_.spoil) {
      for (size_t i = 0; i < n; ++i)
        log_.spoil(n_marks_ + 1, a.logits.as<float>() + static_cast<int64_t>(i) * a.logits.dims[1], a.logits.dims[1]);
    }
    pending_.push_back({n_marks_ + 1, a.host_out.as<Drawn>(), std::vector<Drawn>(n)});
    std::fill_n(a.host_out.as<Drawn>(), n, Drawn{-77, 1});  // too early a look finds no token
    a.host_out.data = pending_.back().values.data();
    sample_on_host(a);
    log_.calls.push_back("sample " + std::to_string(n_marks_ + 1));
  }
  uint64_t mark() override { return static_cast<uint64_t>(++n_marks_); }
  void wait_for(uint64_t mark) override {
    log_.calls.push_back("wait " + std::to_string(mark));
    if (static_cast<int64_t>(mark) == n_marks_) ++n_syncs_;  // the device has nothing left to do
    publish(static_cast<int64_t>(mark));
  }

 private:
  struct Pending {
    int64_t mark;
    Drawn* target;
    std::vector<Drawn> values;
  };
  void publish(int64_t mark) {
    for (; !pending_.empty() && pending_.front().mark <= mark; pending_.pop_front())
      std::copy(pending_.front().values.begin(), pending_.front().values.end(), pending_.front().target);
  }

  Log& log_;
  std::deque<Pending> pending_;
  int64_t n_marks_ = 0, n_syncs_ = 0;
};

Model load() {
  LoadOptions options;
  options.device = "ref";
  return Model::load(std::string(TEST_DATA) + "/models/llama3_rope/model.gguf", options);
}

EngineOptions small_options(int64_t n_seqs = 1) {
  EngineOptions o;
  o.n_ctx = 256;
  o.n_seqs = n_seqs;
  return o;
}

Engine make_double(const Model& model, const EngineOptions& options, Log& log) {
  return Engine(std::make_unique<Engine::Impl>(model, options, std::make_unique<Double>(log)));
}

Ids prompt(int64_t n, int64_t salt) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>((i * i * 31 + salt * 101 + i * 7) % 288));
  return ids;
}

Request request(Ids ids, int64_t n, float temperature = 0, int64_t seed = 3) {
  Request r;
  r.ids = std::move(ids);
  r.max_tokens = n;
  r.sampling.temperature = temperature;
  r.sampling.seed = seed;
  r.sampling.ignore_eos = true;
  return r;
}

std::vector<Result> all_results(Engine& engine, const std::vector<Request>& requests) {
  std::vector<Result> results(requests.size());
  for (size_t i = 0; i < requests.size(); ++i)
    engine.submit(requests[i], nullptr, [&results, i](const Result& r) { results[i] = r; });
  while (engine.step()) {
  }
  return results;
}

void check_all_pages_back(const Engine& engine) {
  const EngineStats s = engine.stats();
  CHECK(s.n_free_pages + s.n_cached_pages == s.n_pages);
}

}  // namespace

TEST_CASE("run ahead: a step is started before the tokens of the one before are looked at") {
  const Model model = load();
  Log log;
  Engine engine = make_double(model, small_options(), log);
  engine.generate(request(prompt(5, 1), 5));
  const std::vector<std::string> want = {"run",    "sample 1", "wait 1",                // the prompt, and a first token
                                         "run",    "sample 2", "run",      "sample 3",  // two steps started
                                         "wait 2", "run",      "sample 4", "wait 3",
                                         "run",    "sample 5", "wait 4",  // the last one is known to be it
                                         "wait 5"};
  CHECK(log.calls == want);
  CHECK(log.n_waits == 0);
  CHECK(engine.stats().n_steps == 5);
  CHECK(engine.stats().n_steps_ahead == 3);
  CHECK(engine.stats().n_tokens == 5 + 4);
}

TEST_CASE("run ahead: the tokens are those of the host's sampler, greedy, seeded and penalised") {
  const Model model = load();
  Log log;
  Engine host(model, small_options()), device = make_double(model, small_options(), log);
  for (float temperature : {0.0f, 0.7f, 1.5f})
    for (int penalties : {0, 1, 2}) {
      Request r = request(prompt(40, penalties), 120, temperature, 11);
      if (penalties > 0) {
        r.sampling.repeat_penalty = 1.3f;
        r.sampling.frequency_penalty = 0.2f;
        r.sampling.presence_penalty = 0.1f;
        r.sampling.repeat_last_n = penalties == 1 ? 64 : 100;
      }
      CHECK(device.generate(r).ids == host.generate(r).ids);
    }
  CHECK(device.stats().n_steps_ahead > 9 * 100);
  check_all_pages_back(device);
}

TEST_CASE("run ahead: what the device does not draw is drawn by the host, step by step") {
  const Model model = load();
  Log log;
  Engine host(model, small_options()), device = make_double(model, small_options(), log);
  for (int which = 0; which < 5; ++which) {
    Request r = request(prompt(9, 1), 20, 0.9f);
    if (which == 0) r.sampling.top_k = 0;
    if (which == 1) r.sampling.top_k = kMaxSampleTopK + 1;
    if (which == 2) r.sampling.typical_p = 0.5f;
    if (which == 3) r.sampling.logit_bias = {{5, 2.0f}};
    if (which == 4) r.logprobs = true;
    CHECK(device.generate(r).ids == host.generate(r).ids);
  }
  Request r = request(prompt(9, 1), 20);
  r.sampling.presence_penalty = 1;
  r.sampling.repeat_last_n = -1;
  CHECK(device.generate(r).ids == host.generate(r).ids);
  CHECK(device.stats().n_steps_ahead == 0);
  CHECK(std::none_of(log.calls.begin(), log.calls.end(), [](auto& c) { return c[0] == 's'; }));
}

TEST_CASE("run ahead: several sequences that come and go get the tokens they get alone") {
  const Model model = load();
  Log log;
  std::vector<Request> requests;
  for (int64_t i = 0; i < 9; ++i) {
    requests.push_back(request(prompt(3 + 13 * i, i), 10 + 7 * i, i % 3 ? 0.9f : 0.0f, i));
    if (i % 4 == 3) requests.back().sampling.top_k = 0;  // drawn by the host
    if (i % 4 == 2) requests.back().sampling.frequency_penalty = 0.3f;
  }
  Engine host(model, small_options());
  std::vector<Ids> alone;
  for (const Request& r : requests) alone.push_back(host.generate(r).ids);
  for (int64_t n_seqs : {1, 3, 9}) {
    Engine engine = make_double(model, small_options(n_seqs), log);
    const std::vector<Result> results = all_results(engine, requests);
    for (size_t i = 0; i < results.size(); ++i) {
      CHECK(results[i].ids == alone[i]);
      CHECK(results[i].reason == FinishReason::length);
    }
    CHECK(engine.stats().n_steps_ahead > 0);
    check_all_pages_back(engine);
  }
  // One more every few steps.
  Engine engine = make_double(model, small_options(4), log);
  std::vector<Ids> got(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    engine.submit(requests[i], nullptr, [&got, i](const Result& r) { got[i] = r.ids; });
    for (int k = 0; k < 4; ++k) engine.step();
  }
  while (engine.step()) {
  }
  CHECK(got == alone);
}

TEST_CASE("run ahead: waiting requests that cannot start yet do not hold back those that run") {
  const Model model = load();
  Log log;
  Engine engine = make_double(model, small_options(1), log);
  const std::vector<Result> results =
      all_results(engine, {request(prompt(5, 1), 50), request(prompt(5, 2), 50), request(prompt(5, 3), 50)});
  CHECK(engine.stats().n_steps_ahead == 3 * 48);
}

TEST_CASE("run ahead: stop tokens and stop strings end an answer where they end it on the host") {
  const Model model = load();
  Log log;
  Engine host(model, small_options()), device = make_double(model, small_options(), log);
  const Result whole = host.generate(request(prompt(20, 2), 60));
  Request r = request(prompt(20, 2), 60);
  r.stop_ids = {whole.ids[30]};
  const Result at_id = device.generate(r);
  CHECK(at_id.reason == FinishReason::stop);
  CHECK(at_id.ids == host.generate(r).ids);
  CHECK(at_id.text == host.generate(r).text);
  if (whole.text.size() > 20) {
    r.stop_ids.clear();
    r.stop = {whole.text.substr(10, 5)};
    const Result at_text = device.generate(r);
    CHECK(at_text.stop_string == r.stop[0]);
    CHECK(at_text.ids == host.generate(r).ids);
    CHECK(at_text.text == host.generate(r).text);
  }
  check_all_pages_back(device);
  // The token computed ahead of the end is not remembered as computed.
  Ids history = prompt(20, 2);
  history.insert(history.end(), at_id.ids.begin(), at_id.ids.end());
  const Request again = request(history, 10);
  const Result reused = device.generate(again);
  CHECK(reused.timings.n_reused == static_cast<int64_t>(history.size()) - 1);
  device.clear_cache();
  CHECK(device.generate(again).ids == reused.ids);
}

TEST_CASE("run ahead: the end of the context is not run past") {
  const Model model = load();
  Log log;
  EngineOptions options = small_options();
  options.n_ctx = 70;
  Engine engine = make_double(model, options, log);
  for (int64_t n : {1, 31, 32, 33, 69, 70}) {
    const Result result = engine.generate(request(prompt(n, n), -1));
    CHECK(result.reason == FinishReason::context);
    CHECK(static_cast<int64_t>(result.ids.size()) == 71 - n);
  }
  check_all_pages_back(engine);
}

TEST_CASE("run ahead: callbacks stop, cancel, submit and throw without harm to others") {
  const Model model = load();
  Log log;
  Engine engine = make_double(model, small_options(4), log);
  const Request calm = request(prompt(9, 3), 40, 0.9f, 1);
  const Ids undisturbed = engine.generate(calm).ids;
  Ids other;
  auto note = [&](const Result& r) { other = r.ids; };
  engine.submit(calm, nullptr, note);
  int n = 0;
  FinishReason reason = FinishReason::stop;
  SECTION("returning false") {
    engine.submit(
        request(prompt(5, 1), 90), [&](const Token&) { return ++n < 7; },
        [&](const Result& r) {
          reason = r.reason;
          CHECK(r.ids.size() == 7);
        });
    while (engine.step()) {
    }
    CHECK(reason == FinishReason::cancelled);
  }
  SECTION("cancel from a callback") {
    RequestId id = 0;
    id = engine.submit(
        request(prompt(5, 1), 90), [&](const Token&) { return ++n == 7 ? engine.cancel(id), true : true; },
        [&](const Result& r) {
          reason = r.reason;
          CHECK(r.ids.size() == 7);
        });
    while (engine.step()) {
    }
    CHECK(reason == FinishReason::cancelled);
  }
  SECTION("submitting from callbacks") {
    engine.submit(
        request(prompt(5, 1), 20),
        [&](const Token&) {
          if (++n == 6) engine.submit(calm, nullptr, [&](const Result& r) { CHECK(r.ids == undisturbed); });
          return true;
        },
        [&](const Result&) { engine.submit(calm, nullptr, [&](const Result& r) { CHECK(r.ids == undisturbed); }); });
    while (engine.step()) {
    }
  }
  SECTION("throwing") {
    engine.submit(
        request(prompt(5, 1), 90),
        [&](const Token&) -> bool { return ++n == 7 ? throw std::runtime_error("mine") : true; },
        [&](const Result& r) { reason = r.reason; });
    CHECK_THROWS_WITH(
        [&] {
          while (engine.step()) {
          }
        }(),
        "mine");
    while (engine.step()) {
    }
    CHECK(reason == FinishReason::cancelled);
  }
  SECTION("logits of another text in between") {
    for (int i = 0; i < 10; ++i) {
      engine.step();
      if (i % 3 == 0) engine.logits(prompt(40, 8), 30, [&](int64_t, std::span<const float>) { ++n; });
    }
    CHECK(n == 40);
    while (engine.step()) {
    }
  }
  SECTION("a request abandoned on the way") {
    CHECK_THROWS_WITH(
        engine.generate(request(prompt(5, 1), 90),
                        [&](const Token&) -> bool { return ++n == 7 ? throw std::runtime_error("x") : true; }),
        "x");
    while (engine.step()) {
    }
  }
  CHECK(other == undisturbed);
  check_all_pages_back(engine);
}

TEST_CASE("run ahead: an engine may go while a step is under way") {
  const Model model = load();
  Log log;
  Engine engine = make_double(model, small_options(), log);
  engine.submit(request(prompt(9, 3), 40), nullptr, nullptr);
  for (int i = 0; i < 3; ++i) engine.step();
  CHECK(log.calls.back() != "run");
}

TEST_CASE("run ahead: with too few pages for all, requests give way and end with the same tokens") {
  const Model model = load();
  Log log;
  std::vector<Request> requests;
  for (int64_t i = 0; i < 5; ++i) requests.push_back(request(prompt(25, i), 60, 0.9f, i));
  for (bool reuse : {true, false}) {
    for (Request& r : requests) r.reuse_prefix = reuse;
    Engine roomy(model, small_options());
    EngineOptions options = small_options(5);
    options.n_ctx = 96;
    options.n_pool = 128;
    Engine tight = make_double(model, options, log);
    const std::vector<Result> results = all_results(tight, requests);
    for (size_t i = 0; i < requests.size(); ++i) CHECK(results[i].ids == roomy.generate(requests[i]).ids);
    CHECK(tight.stats().n_preempted > 0);
    CHECK(tight.stats().n_steps_ahead > 0);
    check_all_pages_back(tight);
  }
}

TEST_CASE("run ahead: logits that are not finite end one request with an error, and never become a token") {
  const Model model = load();
  Log log;
  const Request calm = request(prompt(9, 3), 40, 0.9f, 1);
  Engine host(model, small_options());
  const Ids undisturbed = host.generate(calm).ids;
  for (int64_t last : {1, 2, 3, 9}) {
    Engine engine = make_double(model, small_options(2), log);
    int64_t row = 0;
    // The second row of one draw: the bad sequence was submitted last. From then on it stays bad.
    log.spoil = [&, seen = int64_t{0}](int64_t n_sampled, float* logits, int64_t vocab) mutable {
      row = n_sampled == seen ? row + 1 : 0;
      seen = n_sampled;
      if (row == 1 && n_sampled >= last) logits[vocab - 1] = std::numeric_limits<float>::infinity();
    };
    Ids other;
    Result bad;
    engine.submit(calm, nullptr, [&](const Result& r) { other = r.ids; });
    engine.submit(request(prompt(5, 1), 40), nullptr, [&](const Result& r) { bad = r; });
    while (engine.step()) {
    }
    CHECK(other == undisturbed);
    CHECK(bad.reason == FinishReason::error);
    CHECK(static_cast<int64_t>(bad.ids.size()) == last - 1);
    CHECK(bad.error.find("logits are not finite after token " + std::to_string(5 + last - 1)) == 0);
    check_all_pages_back(engine);
    log.spoil = nullptr;
  }
}

TEST_CASE("run ahead: once warm, a token costs no allocation in the backend, and times add up") {
  const Model model = load();
  Log log;
  Engine engine = make_double(model, small_options(), log);
  const int64_t before = engine.stats().n_allocations;
  const Timings t = engine.generate(request(prompt(40, 1), 150, 0.8f)).timings;
  CHECK(engine.stats().n_allocations == before);
  CHECK(t.n_generated == 150);
  CHECK(t.prompt_seconds > 0);
  CHECK(t.decode_seconds > 0);
  CHECK(t.sample_seconds == 0);
  CHECK(t.total_seconds >= t.prompt_seconds + t.decode_seconds);
}

TEST_CASE("run ahead: steady decoding allocates nothing and never leaves the device without work") {
  const Model model = load();
  Log log;
  for (const float temperature : {0.0f, 0.8f}) {
    for (const int64_t n_seqs : {1, 3}) {
      Engine engine = make_double(model, small_options(n_seqs), log);
      EngineStats warm, late;
      int64_t n = 0;
      for (int64_t i = 0; i < n_seqs; ++i) {
        const TokenCallback look = [&](const Token&) {
          if (++n == 20) warm = engine.stats();
          if (n == 200) late = engine.stats();
          return true;
        };
        engine.submit(request(prompt(9, i), 215, temperature, i), i == 0 ? look : TokenCallback(), nullptr);
      }
      while (engine.step()) {
      }
      CHECK(late.n_steps - warm.n_steps == 180);
      CHECK(late.n_steps_ahead - warm.n_steps_ahead == 180);
      CHECK(late.n_syncs == warm.n_syncs);
      CHECK(late.n_allocations == warm.n_allocations);
      CHECK(warm.n_syncs > 0);  // for the prompt, whose token the first step needs
    }
  }
}
