// Several sequences, and one in pieces, in engines on a GPU: the tokens that each has alone, or those of the reference.
#include "tests/runtime/cuda_engine.h"

namespace cuda_sequences_test {
using namespace infer;
using namespace infer::cuda_engine_test;

TEST_CASE("cuda engine: a batch gives what its requests give alone") {
  if (skipped()) return;
  const File file(DType::F32);
  const Model model = file.load("cuda");
  for (const char* mode : kModes) {
    INFO(mode);
    Engine alone(model, options(mode)), batch(model, options(mode, "f32", 4));
    std::vector<Ids> wanted(4), found(4);
    for (size_t i = 0; i < 4; ++i) {
      const auto n = static_cast<int64_t>(i);
      const Request r = request(prompt(5 + 17 * n, n), 40 + 5 * n);
      wanted[i] = alone.generate(r).ids;
      batch.submit(r, nullptr, [&found, i](const Result& result) { found[i] = result.ids; });
    }
    while (batch.step()) {
    }
    CHECK(found == wanted);
  }
}

TEST_CASE("cuda engine: several sequences have the reference's tokens, whatever the size of a head") {
  if (skipped()) return;
  for (const int64_t head_dim : {32, 64, 80, 96, 128}) {  // of 80 a group of codes would be of two heads
    test::TinyModel tiny;
    tiny.weights = DType::Q8_0, tiny.n_heads = tiny.n_kv_heads = 8;
    tiny.dim = 8 * head_dim, tiny.ffn_dim = 512, tiny.context = 512;
    const File file(tiny);
    const Model reference = file.load("ref"), model = file.load("cuda");
    Engine oracle(reference, options());
    for (const char* mode : {"eager", "graph"})
      for (const int64_t n_seqs : {3, 5, 9}) {
        INFO("heads of " << head_dim << ", mode " << mode << ", sequences " << n_seqs);
        Engine engine(model, options(mode, "f32", n_seqs));
        std::vector<Ids> answers(static_cast<size_t>(n_seqs));
        for (size_t i = 0; i < answers.size(); ++i)
          engine.submit(request(prompt(20, static_cast<int64_t>(i)), 20), nullptr,
                        [&answers, i](const Result& result) { answers[i] = result.ids; });
        while (engine.step()) {
        }
        for (size_t i = 0; i < answers.size(); ++i) {
          REQUIRE(answers[i].size() == 20);
          CHECK(largest_gap(oracle, prompt(20, static_cast<int64_t>(i)), answers[i]) <=
                8 * std::sqrt(bar(DType::Q8_0, "f32")));
        }
      }
  }
}

TEST_CASE("cuda engine: prompts in chunks, and prefixes found again") {
  if (skipped()) return;
  const File file(DType::BF16);
  const Model model = file.load("cuda");
  EngineOptions small = options("", "f16");
  small.n_ubatch = 7;
  Engine whole(model, options("", "f16")), chunks(model, small);
  CHECK(nmse(all_logits(chunks, prompt(150)), all_logits(whole, prompt(150))) <= 1e-3);
  const File exact(DType::F32);
  const Model same = exact.load("cuda");
  Engine engine(same, options());
  const Result cold = engine.generate(request(prompt(90), 30)), hit = engine.generate(request(prompt(90), 30));
  CHECK(cold.timings.n_reused == 0);
  CHECK(hit.timings.n_reused >= 64);
  CHECK(hit.ids == cold.ids);
}

TEST_CASE("cuda engine: models with experts have the reference's tokens, one by one and several at once") {
  if (skipped()) return;
  for (const DType weights : {DType::F32, DType::BF16, DType::Q8_0}) {
    const File file(weights, 6);
    const Model reference = file.load("ref"), model = file.load("cuda");
    Engine oracle(reference, options());
    for (const char* mode : kModes)
      for (const int64_t n_seqs : {1, 3, 9}) {
        INFO("weights " << static_cast<int>(weights) << ", mode " << mode << ", sequences " << n_seqs);
        Engine engine(model, options(mode, "f32", n_seqs));
        std::vector<Ids> answers(static_cast<size_t>(n_seqs));
        for (int64_t i = 0; i < n_seqs; ++i)
          engine.submit(
              request(prompt(20, i), 30),
              [&answers, i](const Token& token) {
                answers[static_cast<size_t>(i)].push_back(token.id);
                return true;
              },
              nullptr);
        while (engine.step()) {
        }
        for (int64_t i = 0; i < n_seqs; ++i) {
          const Ids& answer = answers[static_cast<size_t>(i)];
          REQUIRE(answer.size() == 30);
          // A choice of experts that hangs on a rounding may go the other way, for a token in ten.
          const double most = 8 * std::sqrt(bar(weights == DType::F32 ? weights : DType::Q8_0, "f32"));
          const std::vector<double> gaps = gaps_of(oracle, prompt(20, i), answer);
          const auto beyond = std::count_if(gaps.begin(), gaps.end(), [&](double gap) { return !(gap <= most); });
          CHECK(beyond <= (weights == DType::F32 ? 0 : 3));
        }
      }
  }
}

TEST_CASE("cuda engine: a layer with experts is six launches for two tokens, and none of its own for one") {
  if (skipped()) return;
  const auto launches_of_layer = [](const std::string& mode, int64_t n_seqs) {
    std::vector<int64_t> per_token;  // of models with so many layers
    for (const int64_t n_layers : {2, 3}) {
      const File file(DType::Q8_0, 6, n_layers);
      const Model model = file.load("cuda");
      Engine engine(model, options(mode, "f32", n_seqs));
      std::vector<int64_t> launches;
      const TokenCallback look = [&](const Token&) {
        launches.push_back(engine.stats().n_launches);
        return true;
      };
      for (int64_t i = 0; i < n_seqs; ++i)
        engine.submit(request(prompt(9, i), 12), i == 0 ? look : TokenCallback(), nullptr);
      while (engine.step()) {
      }
      REQUIRE(launches.size() == 12);
      per_token.push_back(launches[8] - launches[7]);
    }
    return per_token[1] - per_token[0];
  };
  CHECK(launches_of_layer("eager", 2) == 6);
  CHECK(launches_of_layer("eager", 1) == 5);  // the stages of the program, each by itself
  CHECK(launches_of_layer("persistent", 1) == 0);
  CHECK(launches_of_layer("graph", 1) == 0);
}

}  // namespace cuda_sequences_test
