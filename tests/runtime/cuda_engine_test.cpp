// Engines on a GPU, through the public interface: the reference's tokens in every mode, with every type of activations
// and cache, and nothing but launches while tokens flow.
#include "tests/runtime/cuda_engine.h"
#include "runtime/imatrix_file.h"
#include "tests/folder.h"

namespace cuda_engine_test {
using namespace infer;
using namespace infer::cuda_engine_test;

TEST_CASE("cuda engine: the tokens of the reference, in every mode") {
  if (skipped()) return;
  for (const DType weights : {DType::F32, DType::F16, DType::BF16, DType::Q8_0}) {
    const File file(weights);
    const Model reference = file.load("ref"), model = file.load("cuda");
    Engine oracle(reference, options());
    for (const char* mode : kModes) {
      INFO("weights " << static_cast<int>(weights) << ", mode " << mode);
      Engine engine(model, options(mode));
      const Ids text = prompt(37), answer = engine.generate(request(text, 60)).ids;
      REQUIRE(answer.size() == 60);
      // Rounding may choose the other one of two that are as good as equal, and nothing else.
      CHECK(largest_gap(oracle, text, answer) <= 8 * std::sqrt(bar(weights, "f32")));
      if (weights == DType::F32) CHECK(answer == oracle.generate(request(text, 60)).ids);
      CHECK(nmse(all_logits(engine, prompt(100, 3)), all_logits(oracle, prompt(100, 3))) <= bar(weights, "f32"));
    }
  }
}

TEST_CASE("cuda engine: without fusion the tokens are those of the reference, as graphs and eagerly") {
  if (skipped()) return;
  for (const DType weights : {DType::F32, DType::BF16, DType::Q8_0}) {
    const File file(weights);
    const Model reference = file.load("ref"), model = file.load("cuda");
    Engine oracle(reference, options());
    for (const char* mode : {"eager", "graph", "auto"}) {
      INFO("weights " << static_cast<int>(weights) << ", mode " << mode);
      EngineOptions plain = options(mode);
      plain.fusion = false;
      Engine engine(model, plain);
      CHECK(engine.stats().backend.find(", no fusion") != std::string::npos);
      const Ids text = prompt(37), answer = engine.generate(request(text, 60)).ids;
      REQUIRE(answer.size() == 60);
      CHECK(largest_gap(oracle, text, answer) <= 8 * std::sqrt(bar(weights, "f32")));
      CHECK(nmse(all_logits(engine, prompt(100, 3)), all_logits(oracle, prompt(100, 3))) <= bar(weights, "f32"));
      CHECK((engine.stats().n_captures == 0) == (mode == std::string("eager")));
    }
  }
}

TEST_CASE("cuda engine: each fusion can be switched off by itself") {
  if (skipped()) return;
  const File file(DType::BF16);
  const Model reference = file.load("ref"), model = file.load("cuda");
  Engine oracle(reference, options());
  for (const char* stage : {"attn_in", "attn_out", "ffn", "logits"}) {
    INFO(stage);
    EngineOptions without = options();
    without.unfused = {stage};
    Engine engine(model, without);
    CHECK(engine.stats().backend.find(std::string(", no fusion of ") + stage) != std::string::npos);
    const Ids text = prompt(37), answer = engine.generate(request(text, 40)).ids;
    REQUIRE(answer.size() == 40);
    CHECK(largest_gap(oracle, text, answer) <= 8 * std::sqrt(bar(DType::BF16, "f32")));
    CHECK(nmse(all_logits(engine, prompt(100, 3)), all_logits(oracle, prompt(100, 3))) <= bar(DType::BF16, "f32"));
  }
}

TEST_CASE("cuda engine: wider activations bring a quantised model nearer to the reference") {
  if (skipped()) return;
  const File file(DType::Q8_0);
  const Model reference = file.load("ref"), model = file.load("cuda");
  Engine oracle(reference, options());
  const Ids text = prompt(60, 5);
  const std::vector<float> wanted = all_logits(oracle, text);
  for (const char* mode : {"eager", "graph", "auto"})
    for (const int64_t n_ubatch : {1, 3, 60}) {  // steps that decode, small ones, a prompt
      const auto error = [&](const char* act) {
        EngineOptions o = options(mode);
        o.act = act, o.n_ubatch = n_ubatch;
        Engine engine(model, o);
        CHECK(engine.stats().backend.find(std::string("activations ") + act) != std::string::npos);
        return nmse(all_logits(engine, text), wanted);
      };
      const double int8 = error("int8"), bf16 = error("bf16"), f16 = error("f16");
      INFO(mode << ", tokens at a time " << n_ubatch << ": int8 " << int8 << ", bf16 " << bf16 << ", f16 " << f16);
      CHECK(int8 <= 1e-2);  // in every product of every token
      CHECK(bf16 < int8);
      CHECK(f16 < bf16);
    }
  const Request r = request(prompt(37), 60);
  for (const char* act : {"int8", "bf16", "f16"}) {
    EngineOptions o = options();
    o.act = act;
    Engine engine(model, o);
    CHECK(largest_gap(oracle, prompt(37), engine.generate(r).ids) <= 8 * std::sqrt(bar(DType::Q8_0, "f32")));
  }
  EngineOptions o = options("persistent");
  o.act = "f16";
  CHECK_THROWS_WITH(Engine(model, o), Catch::Contains("one kernel for a whole step"));
}

TEST_CASE("cuda engine: plain weights take another 16-bit type, and no int8") {
  if (skipped()) return;
  for (const DType weights : {DType::F32, DType::F16, DType::BF16}) {
    const File file(weights);
    const Model reference = file.load("ref"), model = file.load("cuda");
    Engine oracle(reference, options());
    for (const char* act : {"bf16", "f16"}) {
      EngineOptions o = options();
      o.act = act;
      Engine engine(model, o);
      CHECK(nmse(all_logits(engine, prompt(50)), all_logits(oracle, prompt(50))) <= 1e-3);
      CHECK(engine.generate(request(prompt(10), 20)).ids.size() == 20);
    }
    LoadOptions load;
    load.device = "cuda", load.act = "int8";
    CHECK_THROWS_WITH(Model::load(file.path, load), Catch::Contains("int8 with "));
  }
}

TEST_CASE("cuda engine: prompts in fp8 cost what three bits of fraction do, and no memory") {
  if (skipped()) return;
  const File file(DType::Q8_0);
  const Model reference = file.load("ref"), model = file.load("cuda");
  EngineOptions o = options();
  o.n_outputs = 300;  // in one step: few rows are not in fp8
  const EngineOptions as_usual = o;
  o.act = "fp8";
  std::optional<Engine> engine;
  try {
    engine.emplace(model, o);
  } catch (const Error& error) {  // no Hopper, or an old cuBLASLt
    CHECK(std::string(error.what()).find("fp8 cannot be used") != std::string::npos);
    return;
  }
  CHECK(engine->stats().backend.find("activations int8, in prompts fp8") != std::string::npos);
  Engine oracle(reference, options()), usual(model, as_usual);
  const Ids text = prompt(300);
  const std::vector<float> wanted = all_logits(oracle, text), found = all_logits(*engine, text);
  const double error = nmse(found, wanted), in_16_bits = nmse(all_logits(usual, text), wanted);
  INFO("fp8 " << error << ", bf16 " << in_16_bits);
  // Random weights make much of any rounding. Those of e4m3 have 560 times the power of bf16's: 2.6 % and 0.11 %.
  CHECK(error <= 600 * in_16_bits);
  CHECK(error > 2 * in_16_bits);
  const int64_t allocations = engine->stats().n_allocations;
  CHECK(all_logits(*engine, prompt(300, 1)) != found);
  CHECK(engine->generate(request(prompt(200, 2), 20)).ids.size() == 20);
  CHECK(engine->stats().n_allocations == allocations);
  LoadOptions load;
  load.device = "cuda", load.act = "fp8";
  const File plain(DType::BF16);
  CHECK_THROWS_WITH(Model::load(plain.path, load), Catch::Contains("--quant Q8_0"));
  load.deterministic = true;
  CHECK_THROWS_WITH(Model::load(file.path, load), Catch::Contains("fp8"));
  load.deterministic = false;
  const SelfTest test = self_test(file.path, load);
  for (const SelfTestRow& row : test.rows) {
    INFO(row.op << " " << row.format << " " << row.n_tokens << ": " << row.max_error << " " << row.rms_error);
    CHECK(row.passed);
  }
}

TEST_CASE("cuda engine: eager mode records nothing") {
  if (skipped()) return;
  const File file(DType::Q8_0);
  const Model model = file.load("cuda");
  Engine engine(model, options("eager", "f16"));
  engine.generate(request(prompt(20), 10));
  CHECK(engine.stats().n_captures == 0);
}

TEST_CASE("cuda engine: every type of cache") {
  if (skipped()) return;
  const File file(DType::F32);
  const Model reference = file.load("ref"), model = file.load("cuda");
  for (const char* kv : {"f32", "f16", "bf16", "q8_0", "q4_0", "q8_0/q4_0", "f16/q8_0", "q4_0/f32"})
    for (const char* mode : kModes) {
      INFO(kv << ", mode " << mode);
      Engine oracle(reference, options("", kv)), engine(model, options(mode, kv));
      const Ids text = prompt(41), answer = engine.generate(request(text, 50)).ids;
      CHECK(largest_gap(oracle, text, answer) <= 8 * std::sqrt(bar(DType::F32, kv)));
      CHECK(nmse(all_logits(engine, text), all_logits(oracle, text)) <= bar(DType::F32, kv));
    }
}

TEST_CASE("cuda engine: what attention finds may be too small for a float") {
  if (skipped()) return;
  const File file(DType::F32, 0, 3, 154);  // values of a few times the smallest float
  const Model reference = file.load("ref"), model = file.load("cuda");
  for (const int64_t n : {20, 700})  // one split, and two
    for (const char* mode : kModes) {
      INFO("prompt of " << n << ", mode " << mode);
      EngineOptions of_oracle = options(), of_engine = options(mode);
      of_oracle.n_ctx = of_engine.n_ctx = 800;
      Engine oracle(reference, of_oracle), engine(model, of_engine);
      const Ids text = prompt(n), answer = engine.generate(request(text, 50)).ids;
      CHECK(answer.size() == 50);
      CHECK(largest_gap(oracle, text, answer) <= 8 * std::sqrt(bar(DType::F32, "f32")));
    }
}

TEST_CASE("cuda engine: nothing but launches while tokens flow") {
  if (skipped()) return;
  const File file(DType::Q8_0);
  const Model model = file.load("cuda");
  for (const char* mode : kModes)
    for (const float temperature : {0.0f, 0.8f})
      for (const int64_t n_seqs : {1, 4}) {
        INFO(mode << ", temperature " << temperature << ", sequences " << n_seqs);
        Engine engine(model, options(mode, "f16", n_seqs));
        EngineStats warm, late;
        std::vector<int64_t> launches;
        const TokenCallback look = [&](const Token&) {
          launches.push_back(engine.stats().n_launches);
          if (launches.size() == 20) warm = engine.stats();
          if (launches.size() == 220) late = engine.stats();
          return true;
        };
        for (int64_t i = 0; i < n_seqs; ++i) {
          Request r = request(prompt(9, i), 235, temperature);
          r.sampling.top_k = 40;
          engine.submit(r, i == 0 ? look : TokenCallback(), nullptr);
        }
        while (engine.step()) {
        }
        REQUIRE(launches.size() == 235);
        CHECK(late.n_steps_ahead - warm.n_steps_ahead == 200);
        CHECK(late.n_allocations == warm.n_allocations);
        CHECK(late.n_captures == warm.n_captures);
        CHECK(late.n_syncs == warm.n_syncs);
        const int64_t per_token = launches[20] - launches[19];
        CHECK(per_token > 0);
        for (size_t i = 20; i < 220; ++i) CHECK(launches[i] - launches[i - 1] == per_token);
      }
}

TEST_CASE("cuda engine: an engine may go while the device works, and two share a model") {
  if (skipped()) return;
  const File file(DType::BF16);
  const Model model = file.load("cuda");
  Engine one(model, options("", "f16"));
  const Ids undisturbed = one.generate(request(prompt(33), 60)).ids;
  for (int n = 1; n < 6; ++n) {
    Engine gone(model, options("", "f16"));
    gone.submit(request(prompt(33), 60), nullptr, nullptr);
    for (int i = 0; i < n; ++i) gone.step();
  }
  Engine two(model, options("graph", "f16"));
  one.clear_cache();
  Ids first, second;
  one.submit(request(prompt(33), 60), nullptr, [&](const Result& r) { first = r.ids; });
  two.submit(request(prompt(33), 60), nullptr, [&](const Result& r) { second = r.ids; });
  for (bool more = true; more;) {
    more = one.step();
    more = two.step() || more;
  }
  CHECK(first == undisturbed);
  CHECK(second.size() == 60);
}

TEST_CASE("cuda engine: debug-sync gives the tokens of eager mode") {
  if (skipped()) return;
  const File file(DType::Q8_0);
  const Model model = file.load("cuda");
  EngineOptions slow = options("persistent", "f16");
  slow.debug_sync = true;
  Engine eager(model, options("eager", "f16")), synced(model, slow);
  CHECK(synced.stats().backend.find("debug-sync") != std::string::npos);
  const Request r = request(prompt(40), 30, 0.8f);
  CHECK(synced.generate(r).ids == eager.generate(r).ids);
}

TEST_CASE("cuda engine: the self-test passes") {
  if (skipped()) return;
  for (const DType weights : {DType::BF16, DType::Q8_0}) {
    const File file(weights);
    LoadOptions load;
    load.device = "cuda";
    for (const char* kv : {"f16", "q8_0"}) {
      const SelfTest test = self_test(file.path, load, kv, kv);
      for (const SelfTestRow& row : test.rows) {
        INFO(row.op << " " << row.format << " " << row.shape << " " << row.n_tokens << ": " << row.max_error << " "
                    << row.rms_error);
        CHECK(row.passed);
      }
      CHECK(std::any_of(test.rows.begin(), test.rows.end(), [](auto& r) { return r.op == "steps, graph = eager"; }));
    }
  }
}

TEST_CASE("cuda: importances measured on the GPU are those of the reference") {
  if (skipped()) return;
  std::string text;
  for (int i = 0; i < 60; ++i) text += std::to_string(i * i % 71) + " hello world of the model ";
  for (const DType weights : {DType::F32, DType::BF16, DType::Q8_0}) {
    const File file(weights);
    const test::Folder folder;
    ImatrixOptions options;
    options.n_ctx = 96, options.n_ubatch = 40, options.n_chunks = 3;  // prompts, and a few tokens at the end of each
    options.process_output = true;
    for (const char* device : {"cuda", "ref"}) collect_imatrix(file.load(device), text, folder / device, options);
    const ImatrixFile found = read_imatrix(folder / "cuda"), wanted = read_imatrix(folder / "ref");
    CHECK(found.entries.size() == 3 * 7 + 1);
    for (const auto& [name, entry] : wanted.entries) {
      INFO(name);
      const ImatrixFile::Entry& mine = found.entries.at(name);
      CHECK(mine.counts == entry.counts);
      CHECK(nmse({mine.sums.begin(), mine.sums.end()}, {entry.sums.begin(), entry.sums.end()}) < 1e-3);
    }
  }
}

}  // namespace cuda_engine_test
