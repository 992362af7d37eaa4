// Many sequences at once, counted in steps and pages, never in time: who gets a token in which step, who joins and
// leaves when, what preemption and company do to the tokens (nothing), and how many pages a shared prefix takes.
#include <cstdlib>
#include <cstring>
#include <map>

#include "infer.h"
#include "runtime/engine_impl.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

using Ids = std::vector<TokenId>;

/// Computes nothing, so that a hundred thousand tokens cost no time; every logit is 0, and greedy draws are token 0.
class Blank final : public Backend {
 public:
  const char* name() const override { return "blank"; }
  std::string describe() const override { return "blank"; }
  void check_activations(const Needs&) const override {}
  void prepare(const Needs&) override {}
  Buffer allocate(size_t bytes) override { return {std::calloc(bytes, 1), std::free}; }
  void upload(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  size_t packed_bytes(const Tensor&, WeightRole) const override { return 0; }
  Tensor pack(const Tensor& host, WeightRole, void*) const override { return host; }
  void embed(const EmbedArgs&) override {}
  void norm(const NormArgs&) override {}
  void matmul(const MatmulArgs&) override {}
  void activate(const ActivateArgs&) override {}
  void add(const AddArgs&) override {}
  void rope_store(const RopeStoreArgs&) override {}
  void attention(const AttentionArgs&) override {}
  void gather(const Tensor&, const Tensor&, const Tensor&) override {}
  void scale_softcap(const Tensor&, float, float) override {}
  void run(uint64_t, const std::function<void()>& fn) override { fn(); }
  BackendStats stats() const override { return {}; }
};

/// A model on the oracle or on the CPU.
Model load(const std::string& device, int64_t context = 512) {
  static const test::Folder folder;
  const std::string path = folder / ("model" + std::to_string(context) + ".gguf");
  test::TinyModel tiny;
  tiny.context = context;
  test::write_tiny_model(path, tiny);
  LoadOptions options;
  options.device = device;
  options.n_threads = 2;
  return Model::load(path, options);
}

EngineOptions options_for(int64_t n_seqs, int64_t n_ctx = 512) {
  EngineOptions o;
  o.n_ctx = n_ctx;
  o.n_seqs = n_seqs;
  o.n_threads = 2;
  return o;
}

Engine blank_engine(const Model& model, const EngineOptions& options) {
  return Engine(std::make_unique<Engine::Impl>(model, options, std::make_unique<Blank>()));
}

Ids prompt(int64_t n, int64_t salt) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>((i * i * 31 + salt * 101 + i * 7) % 250));
  return ids;
}

Request request(Ids ids, int64_t n, float temperature = 0, int64_t seed = 1) {
  Request r;
  r.ids = std::move(ids);
  r.max_tokens = n;
  r.sampling.temperature = temperature;
  r.sampling.seed = seed;
  r.sampling.ignore_eos = true;
  return r;
}

/// Greedy and seeded ones, of different lengths.
std::vector<Request> mixed_requests(int64_t n, int64_t n_new) {
  std::vector<Request> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back(request(prompt(2 + i * 13 % 50, i), n_new + i % 5, i % 2 ? 0.9f : 0.0f, 100 + i));
  return out;
}

std::vector<Ids> alone(const Model& model, const std::vector<Request>& requests) {
  Engine engine(model, options_for(1));
  std::vector<Ids> out;
  for (const Request& r : requests) out.push_back(engine.generate(r).ids);
  return out;
}

std::vector<Result> together(Engine& engine, const std::vector<Request>& requests) {
  std::vector<Result> results(requests.size());
  for (size_t i = 0; i < requests.size(); ++i)
    engine.submit(requests[i], nullptr, [&results, i](const Result& r) { results[i] = r; });
  while (engine.step()) {
  }
  return results;
}

int64_t held_pages(const Engine& engine) {
  const EngineStats s = engine.stats();
  return s.n_pages - s.n_free_pages - s.n_cached_pages;
}

/// Which request got how many tokens in each step.
class Journal {
 public:
  explicit Journal(Engine& engine) : engine_(engine) {}
  void submit(int name, const Request& r) {
    engine_.submit(
        r, [this, name](const Token&) { return ++got_[name], true; },
        [this, name](const Result& result) { ended_[name] = result.reason; });
  }
  /// False when nothing is left.
  bool step() {
    got_.clear();
    return engine_.step();
  }
  int got(int name) const { return got_.count(name) ? got_.at(name) : 0; }
  bool ended(int name) const { return ended_.count(name) > 0; }

 private:
  Engine& engine_;
  std::map<int, int> got_;
  std::map<int, FinishReason> ended_;
};

}  // namespace

TEST_CASE("many: while a prompt of 100 000 tokens is computed, 32 others get a token in every step") {
  constexpr int64_t kPrompt = 100000, kTalkers = 32, kChunk = 128;
  const Model model = load("ref", 1 << 17);
  EngineOptions options = options_for(kTalkers + 1, kPrompt + 64);
  options.n_pool = options.n_ctx + kTalkers * 1024;
  Engine engine = blank_engine(model, options);
  Journal journal(engine);
  for (int i = 0; i < kTalkers; ++i) journal.submit(i, request(prompt(10, i), 900));
  for (int i = 0; i < 20; ++i) journal.step();
  journal.submit(kTalkers, request(prompt(kPrompt, 99), 5));
  int64_t steps = 0, before = engine.stats().n_tokens;
  for (bool first = false; !first; ++steps) {
    REQUIRE(steps < 1000);
    REQUIRE(journal.step());
    for (int i = 0; i < kTalkers; ++i) REQUIRE(journal.got(i) == 1);
    const int64_t now = engine.stats().n_tokens;
    REQUIRE(now - before <= kTalkers + kChunk);
    before = now;
    first = journal.got(kTalkers) > 0;
  }
  CHECK(steps == (kPrompt + kChunk - 1) / kChunk);
  while (journal.step()) {
  }
  for (int i = 0; i <= kTalkers; ++i) CHECK(journal.ended(i));
  CHECK(engine.stats().n_preempted == 0);
  CHECK(held_pages(engine) == 0);
}

TEST_CASE("many: requests join and leave between steps, and nobody else notices") {
  const Model model = load("ref");
  Engine engine = blank_engine(model, options_for(2));
  Journal journal(engine);
  journal.submit(0, request(prompt(8, 0), 12));
  journal.step();
  CHECK(journal.got(0) == 1);
  journal.submit(1, request(prompt(8, 1), 3));
  journal.submit(2, request(prompt(8, 2), 4));  // there is room for two
  std::string steps;
  while (true) {
    const bool more = journal.step();
    for (int name = 0; name < 3; ++name) steps += journal.got(name) ? std::to_string(name) : "-";
    CHECK(engine.stats().n_running + engine.stats().n_waiting ==
          3 - (journal.ended(0) + journal.ended(1) + journal.ended(2)));
    if (!more) break;
    steps += ' ';
  }
  // 1 ends with its third token, and 2 has its first in the very next step; 0 gets one in each.
  CHECK(steps == "01- 01- 01- 0-2 0-2 0-2 0-2 0-- 0-- 0-- 0--");
  CHECK(held_pages(engine) == 0);
}

TEST_CASE("many: N at once are N alone, up to 64") {
  for (const std::string device : {"ref", "cpu"}) {
    const Model model = load(device);
    const std::vector<Request> requests = mixed_requests(64, 6);
    const std::vector<Ids> want = alone(model, requests);
    for (const int64_t n_seqs : {2, 7, 64}) {
      INFO(device << ", " << n_seqs << " at once");
      Engine engine(model, options_for(n_seqs, 128));
      const std::vector<Result> got = together(engine, requests);
      for (size_t i = 0; i < got.size(); ++i) {
        INFO("request " << i);
        CHECK(got[i].reason == FinishReason::length);
        REQUIRE(got[i].ids == want[i]);
      }
      CHECK(held_pages(engine) == 0);
    }
  }
}

TEST_CASE("many: who gives way in the middle of an answer goes on with the same tokens, and nobody fails") {
  for (const std::string device : {"ref", "cpu"}) {
    const Model model = load(device);
    const std::vector<Request> requests = mixed_requests(12, 70);
    const std::vector<Ids> want = alone(model, requests);
    for (const bool reuse : {true, false}) {
      INFO(device << (reuse ? ", prefixes are reused" : ""));
      EngineOptions options = options_for(12, 128);
      options.n_pool = 512;  // for four of them at their longest
      Engine engine(model, options);
      std::vector<Request> asked = requests;
      for (Request& r : asked) r.reuse_prefix = reuse;
      const std::vector<Result> got = together(engine, asked);
      for (size_t i = 0; i < got.size(); ++i) {
        INFO("request " << i << " " << got[i].error);
        CHECK(got[i].reason == FinishReason::length);
        REQUIRE(got[i].ids == want[i]);
      }
      CHECK(engine.stats().n_preempted > 0);
      CHECK(held_pages(engine) == 0);
    }
  }
}

TEST_CASE("many: a prefix takes its pages once, however many share it") {
  static constexpr int64_t kShare = 16, kPrefix = 8 * 32;
  for (const std::string device : {"ref", "cpu"}) {
    INFO(device);
    const Model model = load(device);
    const Ids prefix = prompt(kPrefix, 7);
    std::vector<Request> requests;
    for (int64_t i = 0; i < kShare; ++i) {
      Ids ids = prefix;
      for (const TokenId id : prompt(5, 50 + i)) ids.push_back(id);
      requests.push_back(request(ids, 10, 0.8f, i));
    }
    const std::vector<Ids> want = alone(model, requests);
    EngineOptions options = options_for(kShare, 512);
    options.n_pool = (8 + kShare) * 32;  // and not a page more: a copy to each would take 16 * 9
    Engine engine(model, options);
    engine.generate(request(prefix, 0));
    CHECK(engine.stats().n_cached_pages == 8);
    std::vector<Ids> got(kShare);
    for (size_t i = 0; i < requests.size(); ++i)
      engine.submit(requests[i], nullptr, [&got, i](const Result& r) {
        got[i] = r.ids;
        CHECK(r.timings.n_reused == kPrefix);
      });
    engine.step();
    CHECK(engine.stats().n_running == kShare);
    CHECK(held_pages(engine) == 8 + kShare);
    while (engine.step()) {
    }
    CHECK(got == want);
    CHECK(engine.stats().n_preempted == 0);
  }
}

TEST_CASE("many: a newcomer waits rather than take pages that a prompt under way will want") {
  const Model model = load("ref", 2048);
  EngineOptions options = options_for(2, 1024);
  options.n_pool = 1024 + 64;
  options.n_ubatch = 64;
  Engine engine = blank_engine(model, options);
  Journal journal(engine);
  journal.submit(0, request(prompt(1000, 0), 2));
  journal.step();
  journal.submit(1, request(prompt(100, 1), 40));
  journal.step();
  CHECK(engine.stats().n_running == 1);
  while (journal.step()) {
  }
  CHECK(journal.ended(0));
  CHECK(journal.ended(1));
  CHECK(engine.stats().n_preempted == 0);
}

TEST_CASE("many: every device takes the wish for the same bits") {
  Needs needs;
  needs.head_dim = 64;
  needs.deterministic = true;
  const DeviceRow* cuda = find_backend("cuda").devices;
  REQUIRE(cuda);
  CHECK(cuda->refusal(needs).empty());
  LoadOptions options;
  options.device = "cpu";
  options.deterministic = true;
  const std::string path = std::string(TEST_DATA) + "/models/llama3_rope/model.gguf";
  EngineOptions engine = options_for(1);
  engine.deterministic = true;
  CHECK_NOTHROW(Engine(Model::load(path, options), engine));
}
