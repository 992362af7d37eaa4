// What --deterministic promises, through the public interface: the logits of a text have the same bits whatever is
// computed beside it, however its prompt is cut, and whether it is computed again or found in the cache. On the CPU it
// is so always; a GPU is asked for it, and without one those tests say SKIPPED.
#include <algorithm>
#include <cstring>
#include <iostream>

#include "infer.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

namespace infer::same_bits {

using Ids = std::vector<TokenId>;

/// A kind of model: weights in the file, or quantised while it is loaded.
struct Kind {
  DType weights = DType::F32;
  std::string quant = {};
  bool experts = false;
  std::string name() const {
    return (quant.empty() ? "type " + std::to_string(static_cast<int>(weights)) : quant) + (experts ? " experts" : "");
  }
};

std::vector<Kind> kinds(const std::string& device = "cuda") {
  if (device == "cpu") return {{DType::BF16}, {DType::F32, "Q4_K_M"}, {DType::Q8_0, {}, true}};
  const std::vector<Kind> all = {
      {DType::F32},           {DType::F16},         {DType::BF16},           {DType::Q8_0},
      {DType::F32, "Q4_K_M"}, {DType::F32, "Q4_0"}, {DType::Q8_0, {}, true}, {DType::BF16, {}, true}};
  return all;
}

Model load(const Kind& kind, const std::string& device) {
  const test::Folder folder;
  test::TinyModel tiny;
  tiny.weights = kind.weights;
  tiny.dim = 256, tiny.ffn_dim = 512, tiny.n_layers = 2, tiny.context = 1024;
  if (kind.experts) tiny.n_experts = 6, tiny.ffn_dim = 256;
  test::write_tiny_model(folder / "m.gguf", tiny);
  LoadOptions options;
  options.device = device, options.quant = kind.quant, options.n_threads = 2;
  options.mmap = false;  // the folder goes
  options.deterministic = true;
  return Model::load(folder / "m.gguf", options);
}

EngineOptions options_for(int64_t n_seqs, int64_t n_ctx = 1024) {
  EngineOptions o;
  o.n_ctx = n_ctx, o.n_seqs = n_seqs, o.n_threads = 2;
  o.deterministic = true;
  return o;
}

Ids prompt(int64_t n, int64_t salt) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>((i * i * 31 + salt * 101 + i * 7) % 250));
  return ids;
}

Request request(Ids ids, int64_t n) {
  Request r;
  r.ids = std::move(ids);
  r.max_tokens = n;
  r.sampling.temperature = 0;
  r.sampling.ignore_eos = true;
  r.logprobs = true, r.n_top_logprobs = 12;
  return r;
}

/// Prompts of 2 to 90 tokens, and now and then one that is longer than a part of attention.
std::vector<Request> requests(int64_t n, int64_t n_new) {
  std::vector<Request> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back(request(prompt(i % 16 == 2 ? 650 + i : 2 + i * 13 % 89, i), n_new + i % 5));
  return out;
}

/// Tokens, and the numbers that stand for their logits.
struct Answer {
  Ids ids;
  std::vector<float> numbers;
};

std::vector<Answer> answers(Engine& engine, const std::vector<Request>& asked) {
  std::vector<Answer> out(asked.size());
  for (size_t i = 0; i < asked.size(); ++i)
    engine.submit(
        asked[i],
        [&out, i](const Token& t) {
          out[i].ids.push_back(t.id), out[i].numbers.push_back(t.logprob);
          for (const auto& [id, logprob] : t.top_logprobs)
            out[i].numbers.push_back(static_cast<float>(id)), out[i].numbers.push_back(logprob);
          return true;
        },
        nullptr);
  while (engine.step()) {
  }
  return out;
}

std::vector<Answer> alone(const Model& model, const std::vector<Request>& asked) {
  Engine engine(model, options_for(1));
  std::vector<Answer> out;
  for (const Request& r : asked) {
    engine.clear_cache();
    out.push_back(answers(engine, {r})[0]);
  }
  return out;
}

void check_bits(const std::string& what, const std::vector<float>& found, const std::vector<float>& wanted) {
  REQUIRE(found.size() == wanted.size());
  REQUIRE_FALSE(found.empty());
  for (size_t i = 0; i < found.size(); ++i) {
    uint32_t a, b;
    std::memcpy(&a, &found[i], 4), std::memcpy(&b, &wanted[i], 4);
    if (a == b) continue;
    FAIL_CHECK(what << ": number " << i << " of " << found.size() << " is " << found[i] << std::hex << " (0x" << a
                    << "), not " << wanted[i] << " (0x" << b << ")");
    return;
  }
}

void check_answers(const std::string& what, const std::vector<Answer>& found, const std::vector<Answer>& wanted) {
  for (size_t i = 0; i < found.size(); ++i) {
    INFO(what << ", request " << i);
    CHECK(found[i].ids == wanted[i].ids);
    check_bits(what + ", request " + std::to_string(i), found[i].numbers, wanted[i].numbers);
  }
}

void check_company(const std::string& device) {
  for (const Kind& kind : kinds(device)) {
    const Model model = load(kind, device);
    const std::vector<Request> all = requests(64, 9);
    const std::vector<Answer> wanted = alone(model, all);
    for (const size_t n : {1, 3, 8, 17, 64}) {
      Engine engine(model, options_for(static_cast<int64_t>(n)));
      const auto end = static_cast<std::ptrdiff_t>(n);
      check_answers(kind.name() + ", " + std::to_string(n) + " at once",
                    answers(engine, {all.begin(), all.begin() + end}), {wanted.begin(), wanted.begin() + end});
    }
  }
}

std::vector<float> all_logits(Engine& engine, const Ids& ids) {
  std::vector<float> out;
  engine.logits(ids, 0, [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); });
  return out;
}

void check_chunks(const std::string& device) {
  for (const Kind& kind : kinds(device)) {
    const Model model = load(kind, device);
    const Ids text = prompt(570, 3);
    std::vector<float> wanted;
    for (const int64_t n_ubatch : {570, 512, 100, 64, 33, 7, 1}) {
      EngineOptions options = options_for(1);
      options.n_ubatch = n_ubatch;
      Engine engine(model, options);
      const std::vector<float> found = all_logits(engine, text);
      if (wanted.empty()) wanted = found;
      check_bits(kind.name() + ", chunks of " + std::to_string(n_ubatch), found, wanted);
    }
  }
}

void check_preempted(const std::string& device) {
  for (const Kind& kind : {Kind{DType::BF16}, Kind{DType::F32, "Q4_K_M"}}) {
    const Model model = load(kind, device);
    std::vector<Request> asked;
    for (int64_t i = 0; i < 12; ++i) asked.push_back(request(prompt(2 + i * 13 % 50, i), 70 + i % 5));
    const std::vector<Answer> wanted = alone(model, asked);
    for (const bool reuse : {true, false}) {
      EngineOptions options = options_for(12, 128);
      options.n_pool = 512;  // for four of them at their longest
      Engine engine(model, options);
      for (Request& r : asked) r.reuse_prefix = reuse;
      check_answers(kind.name() + ", preempted" + (reuse ? ", prefixes reused" : ""), answers(engine, asked), wanted);
      CHECK(engine.stats().n_preempted > 0);
    }
  }
}

void check_reuse(const std::string& device) {
  for (const Kind& kind : kinds(device)) {
    const Model model = load(kind, device);
    Engine engine(model, options_for(4));
    const std::vector<Answer> cold = answers(engine, {request(prompt(600, 1), 20)});
    // The same text, beside others, found in the cache, and its answer as a part of the next prompt.
    const std::vector<Answer> hit =
        answers(engine, {request(prompt(600, 1), 20), request(prompt(70, 2), 20), request(prompt(9, 3), 20)});
    check_answers(kind.name() + ", found again", {hit[0]}, cold);
    Ids longer = prompt(600, 1);
    longer.insert(longer.end(), cold[0].ids.begin(), cold[0].ids.end());
    const std::vector<Answer> from_cache = answers(engine, {request(longer, 8)});
    check_answers(kind.name() + ", answer as prompt", from_cache, alone(model, {request(longer, 8)}));
  }
}

bool skipped() {
  for (const std::string& device : list_devices())
    if (device.starts_with("cuda")) return false;
  std::cout << "SKIPPED: no CUDA device" << std::endl;
  static bool warned = false;
  if (!warned) WARN("SKIPPED: no CUDA device; --deterministic was not tested on one");
  warned = true;
  return true;
}

TEST_CASE("same bits: N sequences at once and each alone") { check_company("cpu"); }
TEST_CASE("same bits: prompts in chunks of any length") { check_chunks("cpu"); }
TEST_CASE("same bits: who gave way and was computed again") { check_preempted("cpu"); }
TEST_CASE("same bits: prefixes found again") { check_reuse("cpu"); }

TEST_CASE("cuda deterministic: N sequences at once have the bits of each alone") {
  if (!skipped()) check_company("cuda");
}
TEST_CASE("cuda deterministic: prompts in chunks of any length have the bits of whole ones") {
  if (!skipped()) check_chunks("cuda");
}
TEST_CASE("cuda deterministic: who gave way and was computed again has the same bits") {
  if (!skipped()) check_preempted("cuda");
}
TEST_CASE("cuda deterministic: prefixes found again have the bits of those computed") {
  if (!skipped()) check_reuse("cuda");
}

TEST_CASE("cuda deterministic: graphs and eager steps have the same bits, and there is no other mode") {
  if (skipped()) return;
  for (const Kind& kind : kinds()) {
    const Model model = load(kind, "cuda");
    const std::vector<Request> asked = requests(5, 12);
    const std::vector<Answer> wanted = alone(model, asked);
    for (const char* mode : {"auto", "graph", "eager"}) {
      EngineOptions options = options_for(5);
      options.mode = mode;
      Engine engine(model, options);
      CHECK(engine.stats().backend.find("deterministic") != std::string::npos);
      check_answers(kind.name() + ", mode " + mode, answers(engine, asked), wanted);
      CHECK((engine.stats().n_captures == 0) == (mode == std::string("eager")));
    }
    EngineOptions options = options_for(1);
    options.mode = "persistent";
    CHECK_THROWS_WITH(Engine(model, options), Catch::Contains("deterministic") && Catch::Contains("persistent"));
    options.mode = "", options.act = "int8";
    CHECK_THROWS(Engine(model, options));
  }
}

TEST_CASE("cuda deterministic: the logits are the reference's") {
  if (skipped()) return;
  for (const Kind& kind : kinds()) {
    if (kind.experts) continue;  // rounding may choose other ones
    EngineOptions options = options_for(1);
    options.k_type = options.v_type = "f16";
    const Model model = load(kind, "cuda"), reference = load(kind, "ref");
    Engine engine(model, options), oracle(reference, options);
    const std::vector<float> found = all_logits(engine, prompt(150, 4)), wanted = all_logits(oracle, prompt(150, 4));
    double error = 0, power = 0;
    for (size_t i = 0; i < wanted.size(); ++i)
      error += (double{found[i]} - wanted[i]) * (double{found[i]} - wanted[i]), power += double{wanted[i]} * wanted[i];
    INFO(kind.name() << ": error " << error / power);
    CHECK(found.size() == wanted.size());
    CHECK(error / power <= (kind.weights == DType::F32 && kind.quant.empty() ? 2e-5 : 3e-3));
  }
}

}  // namespace infer::same_bits
