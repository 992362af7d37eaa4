// The quirks of each architecture as its row reads them, from small checkpoints in memory: one that forgot a quirk
// gives another Config. Whole forward passes are in golden_test.cpp.
#include <algorithm>
#include <cmath>

#include "models/arch.h"
#include "models/rope_config.h"
#include "tests/catch.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_checkpoint.h"

using namespace infer;

namespace {

int64_t i(int64_t value) { return value; }

TinyCheckpoint deep(const std::string& arch, int64_t n_layers) {
  TinyShape shape;
  shape.n_layers = n_layers;
  return TinyCheckpoint(arch, shape);
}

std::vector<int64_t> windows(const Config& c) {
  std::vector<int64_t> out;
  for (const LayerConfig& layer : c.layers) out.push_back(layer.window);
  return out;
}

std::vector<int> ropes(const Config& c) {
  std::vector<int> out;
  for (const LayerConfig& layer : c.layers) out.push_back(layer.rope);
  return out;
}

void check_refused(const TinyCheckpoint& tiny, const std::string& key, const std::string& says) {
  INFO(key);
  CHECK_THROWS_WITH(read_config(tiny.build()), Catch::Contains(key) && Catch::Contains(says));
}

/// Logits of a short text. The numbers of tensors depend on their names and sizes alone, so that two architectures with
/// the same tensors are the same model but for their quirks.
std::vector<float> logits(const TinyCheckpoint& tiny, const char* backend = "ref") {
  return Runner(tiny.build(), backend).step({{0, {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}}});
}

/// The rows [from, from + rows) of one tensor become another one.
void copy_rows(TinyCheckpoint& from, const std::string& whole, int64_t first, TinyCheckpoint& to,
               const std::string& part, int64_t rows, int64_t cols) {
  std::copy_n(from.values(whole) + first * cols, rows * cols, to.values(part));
}

using Windows = std::vector<int64_t>;
using Ropes = std::vector<int>;

}  // namespace

TEST_CASE("pairs are adjacent where converters permute q and k, and halves elsewhere") {
  for (const Arch& arch : architectures()) {
    INFO(arch.name);
    const std::string name = arch.name;
    if (name != "llama" && name != "smollm3" && name != "granite" && name != "qwen2" && name != "qwen3" &&
        name != "gemma2" && name != "gemma3" && name != "phi3")
      continue;
    const bool permuted = name == "llama" || name == "smollm3" || name == "granite";
    CHECK(read_config(TinyCheckpoint(name).build()).ropes[0].adjacent == permuted);
  }
}

TEST_CASE("only what an architecture has is switched on") {
  const auto config = [](const char* arch) { return read_config(TinyCheckpoint(arch).build()); };
  for (const char* arch : {"llama", "qwen2", "phi3", "smollm3", "granite"}) {
    INFO(arch);
    const Config c = config(arch);
    CHECK(!c.qk_norm);
    CHECK(!c.post_norms);
    CHECK(c.activation == Activation::silu);
    CHECK(c.embed_scale == 1);
    CHECK(c.attn_softcap == 0);
    CHECK(c.logit_softcap == 0);
    CHECK(windows(c) == Windows{0, 0});
  }
  const Config qwen3 = config("qwen3");
  CHECK(qwen3.qk_norm);
  CHECK(!qwen3.post_norms);
  CHECK(qwen3.activation == Activation::silu);
}

TEST_CASE("a window key counts for all layers, or for those that a pattern names") {
  for (const char* arch : {"llama", "qwen2", "qwen3", "phi3", "smollm3", "granite"}) {
    INFO(arch);
    TinyCheckpoint tiny = deep(arch, 4);
    tiny.set("attention.sliding_window", i(8));
    CHECK(windows(read_config(tiny.build())) == Windows{8, 8, 8, 8});
    tiny.set("attention.sliding_window_pattern", std::vector<bool>{false, false, true, true});
    CHECK(windows(read_config(tiny.build())) == Windows{0, 0, 8, 8});
    tiny.set("attention.sliding_window_pattern", i(2));
    CHECK(windows(read_config(tiny.build())) == Windows{8, 0, 8, 0});
    tiny.set("attention.sliding_window", i(0));
    CHECK(windows(read_config(tiny.build())) == Windows{0, 0, 0, 0});
    tiny.set("attention.sliding_window_pattern", std::vector<bool>{true});
    check_refused(tiny, "attention.sliding_window_pattern", "length");
  }
}

TEST_CASE("gemma2 has windows on every other layer, from the first on, and caps scores and logits") {
  TinyCheckpoint tiny = deep("gemma2", 5);
  Config c = read_config(tiny.build());
  CHECK(windows(c) == Windows{16, 0, 16, 0, 16});
  CHECK(ropes(c) == Ropes{0, 0, 0, 0, 0});
  CHECK(c.post_norms);
  CHECK(!c.qk_norm);
  CHECK(c.activation == Activation::gelu_tanh);
  CHECK(c.embed_scale == Approx(std::sqrt(32.0)));
  CHECK(c.attn_softcap == 50);
  CHECK(c.logit_softcap == 30);
  tiny.set("attn_logit_softcapping", 5.0).set("final_logit_softcapping", 8.0).erase("attention.sliding_window");
  c = read_config(tiny.build());
  CHECK(c.attn_softcap == 5);
  CHECK(c.logit_softcap == 8);
  CHECK(c.layers[0].window == 4096);
  tiny.set("attn_logit_softcapping", 0.0).set("final_logit_softcapping", 0.0);
  c = read_config(tiny.build());
  CHECK(c.attn_softcap == 0);
  CHECK(c.logit_softcap == 0);
}

TEST_CASE("the 27B shape of gemma2 alone scales attention by the width per head, unless a key says otherwise") {
  TinyCheckpoint tiny("gemma2");
  tiny.set("block_count", i(46)).set("embedding_length", i(4608)).set("attention.head_count", i(32));
  tiny.set("attention.head_count_kv", i(16)).set("attention.key_length", i(128));
  tiny.set("attention.value_length", i(128));
  CHECK(read_config(tiny.build()).attn_scale == Approx(1 / std::sqrt(144.0)));
  CHECK(read_config(tiny.set("attention.scale", 0.25).build()).attn_scale == 0.25f);
  tiny.erase("attention.scale").set("block_count", i(42));
  CHECK(read_config(tiny.build()).attn_scale == Approx(1 / std::sqrt(128.0)));
}

TEST_CASE("every fourth layer of smollm3 does not rotate, or those that its pattern leaves out") {
  TinyCheckpoint tiny = deep("smollm3", 5);
  CHECK(ropes(read_config(tiny.build())) == Ropes{0, 0, 0, -1, 0});
  tiny.set("rope.layer_pattern", i(2));
  CHECK(ropes(read_config(tiny.build())) == Ropes{0, -1, 0, -1, 0});
  tiny.set("rope.layer_pattern", std::vector<int64_t>{0, 1, 1, 1, 0});
  CHECK(ropes(read_config(tiny.build())) == Ropes{-1, 0, 0, 0, -1});
  tiny.set("rope.layer_pattern", std::vector<int64_t>{0, 1, 1, 2, 0});
  check_refused(tiny, "smollm3.rope.layer_pattern", "range");
}

TEST_CASE("granite multiplies embeddings, scores and branches, divides logits, and may be without rotation") {
  TinyCheckpoint tiny("granite");
  Config c = read_config(tiny.build());
  CHECK(c.logit_scale == 0.25f);
  CHECK(c.residual_scale == 1);
  CHECK(c.attn_scale == Approx(1 / std::sqrt(8.0)));
  tiny.set("embedding_scale", 12.0).set("residual_scale", 0.22).set("attention.scale", 0.12);
  c = read_config(tiny.build());
  CHECK(c.embed_scale == 12);
  CHECK(c.residual_scale == 0.22f);
  CHECK(c.attn_scale == 0.12f);
  CHECK(ropes(c) == Ropes{0, 0});
  CHECK(ropes(read_config(tiny.set("rope.scaling.finetuned", false).build())) == Ropes{-1, -1});
  check_refused(TinyCheckpoint("granite").erase("logit_scale"), "granite.logit_scale", "missing");
  check_refused(TinyCheckpoint("granite").set("residual_scale", 0.0), "granite.residual_scale", "range");
}

TEST_CASE("phi3 rotates a part of each head and has divisors for short and for long contexts") {
  TinyCheckpoint tiny("phi3");
  tiny.set("rope.dimension_count", i(6)).set("rope.scaling.original_context_length", i(32));
  CHECK(read_config(tiny.build()).ropes[0].long_divisors.empty());
  CHECK(read_config(tiny.build()).ropes[0].attn_factor == 1);
  tiny.numbers("rope_factors_short.weight", {1, 2, 3});
  check_refused(tiny, "rope_factors_long.weight", "missing");
  tiny.numbers("rope_factors_long.weight", {4, 5, 6});
  RopeConfig rope = read_config(tiny.build()).ropes[0];
  CHECK(rope.dim == 6);
  CHECK(rope.scaling == RopeScaling::none);
  CHECK(rope.original_context == 32);
  CHECK(rope.divisors == std::vector<float>{1, 2, 3});
  CHECK(rope.long_divisors == std::vector<float>{4, 5, 6});
  CHECK(rope.attn_factor == Approx(std::sqrt(1 + std::log(128.0 / 32) / std::log(32.0))));
  tiny.set("rope.scaling.attn_factor", 1.125);
  CHECK(read_config(tiny.build()).ropes[0].attn_factor == 1.125);
  check_refused(tiny.numbers("rope_factors_long.weight", {4, 5}), "rope_factors_long.weight", "[3]");
  check_refused(tiny.numbers("rope_factors_long.weight", {4, 0, 6}), "ropes[0].divisors", "range");
  check_refused(TinyCheckpoint("phi3").set("rope.scaling.type", std::string("longrope")), "rope_factors_short.weight",
                "missing");
}

TEST_CASE("a dynamic rope needs a factor of at least 1 and two pairs") {
  TinyCheckpoint tiny;
  tiny.set("rope.scaling.type", std::string("dynamic"));
  check_refused(tiny, "llama.rope.scaling.factor", "missing");
  const RopeConfig rope = read_config(tiny.set("rope.scaling.factor", 4.0).build()).ropes[0];
  CHECK(rope.scaling == RopeScaling::dynamic);
  CHECK(rope.factor == 4);
  CHECK(rope.original_context == 128);
  check_refused(tiny.set("rope.scaling.factor", 0.5), "ropes[0].factor", "range");
  check_refused(tiny.set("rope.scaling.factor", 4.0).set("rope.dimension_count", i(2)), "ropes[0].dim", "range");
}

TEST_CASE("what a person wants of the rope replaces what the file says") {
  // As the loader puts it into the metadata: keys without an architecture.
  const auto rope_with = [](TinyCheckpoint& tiny, const std::vector<std::pair<const char*, Value::Data>>& wanted) {
    Checkpoint c = tiny.build();
    for (const auto& [key, data] : wanted) c.metadata[key] = {data, "test value"};
    return read_config(c).ropes[0];
  };
  TinyCheckpoint plain, yarn;
  yarn.set("rope.scaling.type", std::string("yarn")).set("rope.scaling.factor", 4.0);
  yarn.set("rope.scaling.original_context_length", i(32)).set("rope.scaling.attn_factor", 2.0);
  SECTION("a base and a factor") {
    const RopeConfig rope = rope_with(plain, {{kRopeBaseKey, 5e5}, {kRopeFactorKey, 2.0}});
    CHECK(rope.base == 5e5);
    CHECK(rope.scaling == RopeScaling::linear);
    CHECK(rope.factor == 2);
  }
  SECTION("none and linear instead of yarn") {
    CHECK(rope_with(yarn, {{kRopeScalingKey, std::string("none")}}).scaling == RopeScaling::none);
    const RopeConfig rope = rope_with(yarn, {{kRopeScalingKey, std::string("linear")}});
    CHECK(rope.scaling == RopeScaling::linear);
    CHECK(rope.factor == 4);
  }
  SECTION("yarn, with the model's context as the original one") {
    const RopeConfig rope = rope_with(plain, {{kRopeScalingKey, std::string("yarn")}, {kRopeFactorKey, 8.0}});
    CHECK(rope.scaling == RopeScaling::yarn);
    CHECK(rope.factor == 8);
    CHECK(rope.original_context == 128);
    CHECK(rope.ext_factor == 1);
  }
  SECTION("the numbers of yarn") {
    const RopeConfig rope = rope_with(yarn, {{kRopeOriginalKey, i(64)},
                                             {kRopeExtKey, 0.5},
                                             {kRopeAttnKey, 1.5},
                                             {kRopeBetaFastKey, 16.0},
                                             {kRopeBetaSlowKey, 2.0}});
    CHECK(rope.original_context == 64);
    CHECK(rope.ext_factor == 0.5);
    CHECK(rope.attn_factor == 3);  // on top of the model's own
    CHECK(rope.beta_fast == 16);
    CHECK(rope.beta_slow == 2);
    CHECK(rope.factor == 4);
  }
  SECTION("a share of frequencies that stay makes yarn of linear") {
    CHECK(rope_with(plain, {{kRopeFactorKey, 2.0}, {kRopeExtKey, 1.0}}).scaling == RopeScaling::yarn);
    CHECK(rope_with(plain, {{kRopeFactorKey, 2.0}, {kRopeExtKey, 0.0}}).scaling == RopeScaling::linear);
  }
  SECTION("divisors stay") {
    TinyCheckpoint llama3;
    llama3.numbers("rope_freqs.weight", {1, 1, 2, 8});
    CHECK(rope_with(llama3, {{kRopeScalingKey, std::string("none")}}).divisors.size() == 4);
    TinyCheckpoint keys;  // the same, of a file that names their parameters
    keys.set("rope.scaling.type", std::string("llama3")).set("rope.scaling.factor", 8.0);
    keys.set("rope.scaling.low_freq_factor", 1.0).set("rope.scaling.high_freq_factor", 4.0);
    const std::vector<float> own = rope_with(keys, {}).divisors;
    CHECK(own.size() == 4);
    CHECK(rope_with(keys, {{kRopeScalingKey, std::string("yarn")}, {kRopeFactorKey, 2.0}}).divisors == own);
  }
  SECTION("an unknown scaling is refused") {
    CHECK_THROWS_WITH(rope_with(plain, {{kRopeScalingKey, std::string("longrope")}}), Catch::Contains("longrope"));
  }
}

TEST_CASE("a model with fused tensors gives the bits of the same one in parts") {
  TinyCheckpoint fused("phi3"), parts("qwen2");
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    fused.tensor(blk + "attn_qkv.bias", {64});
    parts.tensor(blk + "attn_q.bias", {32}).tensor(blk + "attn_k.bias", {16}).tensor(blk + "attn_v.bias", {16});
    for (const auto& [kind, cols] : {std::pair(std::string(".weight"), 32), {std::string(".bias"), 1}}) {
      copy_rows(fused, blk + "attn_qkv" + kind, 0, parts, blk + "attn_q" + kind, 32, cols);
      copy_rows(fused, blk + "attn_qkv" + kind, 32, parts, blk + "attn_k" + kind, 16, cols);
      copy_rows(fused, blk + "attn_qkv" + kind, 48, parts, blk + "attn_v" + kind, 16, cols);
    }
    copy_rows(fused, blk + "ffn_up.weight", 0, parts, blk + "ffn_gate.weight", 64, 32);
    copy_rows(fused, blk + "ffn_up.weight", 64, parts, blk + "ffn_up.weight", 64, 32);
  }
  for (const char* backend : {"ref", "cpu"}) {
    INFO(backend);
    CHECK(logits(fused, backend) == logits(parts, backend));
  }
}

TEST_CASE("every quirk reaches the logits: without it an architecture is another one") {
  const std::vector<float> llama = logits(deep("llama", 4));
  SECTION("smollm3 is a llama when all layers rotate") {
    TinyCheckpoint tiny = deep("smollm3", 4);
    CHECK(logits(tiny) != llama);
    CHECK(logits(tiny.set("rope.layer_pattern", std::vector<bool>(4, true))) == llama);
  }
  SECTION("granite is a llama when its factors are 1") {
    const auto granite = [] { return deep("granite", 4).set("logit_scale", 1.0); };
    CHECK(logits(granite()) == llama);
    for (const char* key : {"logit_scale", "embedding_scale", "residual_scale", "attention.scale"}) {
      INFO(key);
      CHECK(logits(granite().set(key, 0.5)) != llama);
    }
    CHECK(logits(granite().set("rope.scaling.finetuned", false)) != llama);
  }
  SECTION("the pairs of qwen2 are halves") { CHECK(logits(deep("qwen2", 4)) != llama); }
  SECTION("gemma2 caps scores and logits, and looks back as far as its window") {
    const auto gemma2 = [](double scores, double logits, int64_t window) {
      TinyCheckpoint tiny("gemma2");
      tiny.set("attn_logit_softcapping", scores).set("final_logit_softcapping", logits);
      return tiny.set("attention.sliding_window", window);
    };
    const std::vector<float> plain = logits(gemma2(0, 0, 0));
    CHECK(logits(gemma2(0, 0, 12)) == plain);  // as long as the text
    CHECK(logits(gemma2(0, 0, 4)) != plain);
    CHECK(logits(gemma2(2, 0, 0)) != plain);
    CHECK(logits(gemma2(0, 2, 0)) != plain);
  }
  SECTION("a part of each head that does not rotate") {
    CHECK(logits(deep("phi3", 2).set("rope.dimension_count", i(4))) != logits(deep("phi3", 2)));
  }
}
