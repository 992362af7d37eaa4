// Models of random weights: complete, quantised as a file would be, finite.
#include <cmath>
#include <map>

#include "infer.h"
#include "models/arch.h"
#include "models/weights.h"
#include "runtime/random_model.h"
#include "tests/catch.h"
#include "tests/sanitized.h"

using namespace infer;

TEST_CASE("random models: every shape is a model, quantised by the rules for files, with the sizes of published ones") {
  // Of these there is one of every kind: rows of whole blocks or not, a head of its own or not, experts or not.
  const std::map<std::string, int64_t> n_parameters = {
      {"135m", 134515008}, {"1b", 1235814400}, {"8b", 8030261248}, {"olmoe", 6919161856}};
  for (const std::string& shape : random_shapes()) {
    if (shape == "70b" || shape == "13b") continue;  // the largest tensors take memory
    const auto n = n_parameters.find(shape);
    if (test::kSanitized && n == n_parameters.end()) continue;
    INFO(shape);
    const Checkpoint checkpoint = random_checkpoint(shape, "q4_k_m");
    if (n != n_parameters.end()) {
      int64_t sum = 0;
      for (const HostTensor& tensor : checkpoint.tensors) sum += tensor.n_elements();
      CHECK(sum == n->second);
    }
    const Config config = read_config(checkpoint);
    Weights weights;
    const auto bound = bind_weights(checkpoint, config, weights);
    const int64_t tensors = shape == "olmoe" ? 12 : 9;  // of a layer
    CHECK(bound.size() == static_cast<size_t>(3 + tensors * config.n_layers));
    const bool whole_blocks = config.dim % 256 == 0;
    CHECK(checkpoint.find_tensor("blk.1.attn_q.weight")->dtype == (whole_blocks ? DType::Q4_K : DType::Q5_0));
    CHECK(checkpoint.find_tensor("blk.0.attn_norm.weight")->dtype == DType::F32);
  }
}

TEST_CASE("random models: computed without a tokenizer, with finite logits") {
  LoadOptions options;
  options.device = "cpu";
  options.quant = "Q2_K";
  const Model model = Model::random("135m", options);
  CHECK(model.info().file_type == "Q2_K - Medium");
  CHECK_FALSE(model.info().has_tokenizer);
  CHECK(model.vocab() == 49152);
  EngineOptions engine_options;
  engine_options.n_ctx = 64;
  Engine engine(model, engine_options);
  const std::vector<TokenId> ids = {1, 20000, 49151};
  bool finite = false;
  engine.logits(ids, -1, [&](int64_t, std::span<const float> row) {
    finite = true;
    for (float v : row) finite = finite && std::isfinite(v);
  });
  CHECK(finite);
  CHECK_THROWS_AS(Model::random("9b", options), Error);
  options.quant = "q9";
  CHECK_THROWS_AS(Model::random("135m", options), Error);
}
