// What readers make of metadata, and the extremes they and validate() must refuse, each by name and without dividing,
// looping or allocating by the number in question.
#include <chrono>
#include <cmath>
#include <limits>

#include "models/arch.h"
#include "tests/catch.h"
#include "tests/models/tiny_checkpoint.h"

using namespace infer;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

int64_t i(int64_t value) { return value; }

struct MetadataFault {
  const char* key;  ///< without prefix
  Value::Data data;
  const char* says;  ///< part of the message, beside the key
};

void check_refused(const Checkpoint& checkpoint, const std::string& key, const std::string& says) {
  INFO(key);
  const auto start = std::chrono::steady_clock::now();
  try {
    read_config(checkpoint);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(error.kind() == ErrorKind::bad_file);
    CHECK_THAT(error.what(), Catch::Contains("tiny.gguf") && Catch::Contains(key) && Catch::Contains(says));
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
}

}  // namespace

TEST_CASE("a llama config is what its keys say") {
  const Config c = read_config(TinyCheckpoint().build());
  CHECK(c.arch == "llama");
  CHECK(c.n_layers == 2);
  CHECK(c.dim == 32);
  CHECK(c.n_heads == 4);
  CHECK(c.n_kv_heads == 2);
  CHECK(c.head_dim == 8);
  CHECK(c.ffn_dim == 64);
  CHECK(c.vocab == 40);
  CHECK(c.n_ctx_train == 128);
  CHECK(c.norm_eps == 1e-5f);
  CHECK(c.attn_scale == Approx(1 / std::sqrt(8.0)));
  CHECK(c.activation == Activation::silu);
  CHECK(c.embed_scale == 1);
  CHECK(!c.qk_norm);
  CHECK(!c.post_norms);
  REQUIRE(c.ropes.size() == 1);
  CHECK(c.ropes[0].adjacent);
  CHECK(c.ropes[0].dim == 8);
  CHECK(c.ropes[0].scaling == RopeScaling::none);
  REQUIRE(c.layers.size() == 2);
  CHECK(c.layers[1].window == 0);
  CHECK(c.layers[1].rope == 0);
}

TEST_CASE("keys that older files leave out have their defaults") {
  TinyCheckpoint tiny;
  tiny.erase("attention.key_length").erase("attention.value_length").erase("rope.freq_base");
  tiny.erase("attention.head_count_kv");
  const Config c = read_config(tiny.build());
  CHECK(c.head_dim == 8);
  CHECK(c.n_kv_heads == 4);
  CHECK(c.ropes[0].base == 10000);
}

TEST_CASE("a gemma3 config alternates windows and ropes") {
  TinyShape shape;
  shape.n_layers = 13;
  TinyCheckpoint tiny("gemma3", shape);
  tiny.set("rope.freq_base", 1e6).set("rope.scaling.type", std::string("linear")).set("rope.scaling.factor", 8.0);
  Config c = read_config(tiny.build());
  CHECK(c.activation == Activation::gelu_tanh);
  CHECK(c.embed_scale == Approx(std::sqrt(32.0)));
  CHECK(c.qk_norm);
  CHECK(c.post_norms);
  CHECK(c.attn_scale == Approx(1 / std::sqrt(8.0)));
  REQUIRE(c.ropes.size() == 2);
  CHECK(c.ropes[0].base == 1e6);
  CHECK(c.ropes[0].scaling == RopeScaling::linear);
  CHECK(c.ropes[0].factor == 8);
  CHECK(!c.ropes[0].adjacent);
  CHECK(c.ropes[1].base == 10000);
  CHECK(c.ropes[1].scaling == RopeScaling::none);
  for (size_t layer = 0; layer < 13; ++layer) {
    const bool global = layer == 5 || layer == 11;
    CHECK(c.layers[layer].window == (global ? 0 : 16));
    CHECK(c.layers[layer].rope == (global ? 0 : 1));
  }
  tiny.set("attention.sliding_window_pattern", i(2)).set("rope.freq_base_swa", 5e4);
  c = read_config(tiny.build());
  CHECK(c.layers[0].window == 16);
  CHECK(c.layers[1].window == 0);
  CHECK(c.ropes[1].base == 5e4);
  std::vector<bool> flags(13, true);
  flags[3] = false;
  c = read_config(tiny.set("attention.sliding_window_pattern", flags).build());
  for (size_t layer = 0; layer < 13; ++layer) CHECK(c.layers[layer].window == (layer == 3 ? 0 : 16));
  flags.pop_back();
  check_refused(tiny.set("attention.sliding_window_pattern", flags).build(), "sliding_window_pattern", "length");
  check_refused(tiny.set("attention.sliding_window_pattern", i(0)).build(), "sliding_window_pattern", "range");
  check_refused(TinyCheckpoint("gemma3").erase("attention.sliding_window").build(), "gemma3.attention.sliding_window",
                "missing");
}

TEST_CASE("the 27B shape of gemma3 alone scales attention by the width per head") {
  TinyShape shape{
      .n_layers = 62, .dim = 5376, .n_heads = 32, .n_kv_heads = 16, .head_dim = 128, .ffn_dim = 21504, .vocab = 4};
  TinyCheckpoint tiny("gemma3", TinyShape{});
  tiny.set("block_count", shape.n_layers).set("embedding_length", shape.dim).set("attention.head_count", shape.n_heads);
  tiny.set("attention.head_count_kv", shape.n_kv_heads).set("attention.key_length", shape.head_dim);
  tiny.set("attention.value_length", shape.head_dim);
  CHECK(read_config(tiny.build()).attn_scale == Approx(1 / std::sqrt(168.0)));
  tiny.set("block_count", i(48));
  CHECK(read_config(tiny.build()).attn_scale == Approx(1 / std::sqrt(128.0)));
}

TEST_CASE("rope scaling is read from keys and from the tensor of divisors") {
  SECTION("linear, also as the first files called it") {
    CHECK(read_config(TinyCheckpoint().set("rope.scale_linear", 4.0).build()).ropes[0].factor == 4);
    TinyCheckpoint tiny;
    const Config c = read_config(tiny.set("rope.scaling.factor", 2.0).build());
    CHECK(c.ropes[0].scaling == RopeScaling::linear);
    CHECK(c.ropes[0].factor == 2);
  }
  SECTION("none switches a factor off") {
    TinyCheckpoint tiny;
    tiny.set("rope.scaling.factor", 2.0).set("rope.scaling.type", std::string("none"));
    CHECK(read_config(tiny.build()).ropes[0].scaling == RopeScaling::none);
  }
  SECTION("yarn") {
    TinyCheckpoint tiny;
    tiny.set("rope.scaling.type", std::string("yarn")).set("rope.scaling.factor", 4.0);
    tiny.set("rope.scaling.original_context_length", i(32)).set("rope.scaling.yarn_beta_fast", 16.0);
    const RopeConfig rope = read_config(tiny.build()).ropes[0];
    CHECK(rope.scaling == RopeScaling::yarn);
    CHECK(rope.factor == 4);
    CHECK(rope.original_context == 32);
    CHECK(rope.beta_fast == 16);
    CHECK(rope.beta_slow == 1);
  }
  SECTION("divisors") {
    TinyCheckpoint tiny;
    tiny.numbers("rope_freqs.weight", {1, 1, 2, 8});
    CHECK(read_config(tiny.build()).ropes[0].divisors == std::vector<float>{1, 1, 2, 8});
  }
}

TEST_CASE("arrays of one number per layer are read when the layers agree") {
  const std::vector<int64_t> same = {4, 4}, differ = {4, 2}, zero = {4, 0}, tooshort = {4}, toolong = {4, 4, 4};
  CHECK(read_config(TinyCheckpoint().set("attention.head_count", same).build()).n_heads == 4);
  CHECK(read_config(TinyCheckpoint().set("feed_forward_length", std::vector<int64_t>{64, 64}).build()).ffn_dim == 64);
  for (const auto& [values, says] :
       {std::pair(differ, "same number"), {zero, "range"}, {tooshort, "length"}, {toolong, "length"}}) {
    check_refused(TinyCheckpoint().set("attention.head_count", values).build(), "llama.attention.head_count", says);
    check_refused(TinyCheckpoint().set("attention.head_count_kv", values).build(), "llama.attention.head_count_kv",
                  says);
  }
  check_refused(TinyCheckpoint().set("attention.head_count", std::vector<int64_t>{}).build(),
                "llama.attention.head_count", "length");
}

TEST_CASE("an extreme or unsupported value is refused by its key, quickly") {
  const std::vector<MetadataFault> faults = {
      {"block_count", i(0), "range"},
      {"block_count", i(-1), "range"},
      {"block_count", i(1025), "range"},
      {"block_count", i(1) << 20, "range"},
      {"block_count", i(0x7fffffff), "range"},
      {"block_count", i(0x80000000), "range"},
      {"block_count", i(0xffffffff), "range"},
      {"block_count", uint64_t{1} << 63, "range"},
      {"block_count", std::string("2"), "type"},
      {"block_count", 2.0, "type"},
      {"block_count", true, "type"},
      {"block_count", std::vector<int64_t>{2}, "type"},
      {"embedding_length", i(0), "range"},
      {"embedding_length", i(0x7fffffff), "range"},
      {"feed_forward_length", i(0), "range"},
      {"feed_forward_length", i(1) << 40, "range"},
      {"attention.head_count", i(0), "range"},
      {"attention.head_count", i(-4), "range"},
      {"attention.head_count", i(1) << 31, "range"},
      {"attention.head_count_kv", i(0), "range"},
      {"attention.head_count_kv", i(8), "range"},
      {"attention.key_length", i(0), "range"},
      {"attention.key_length", i(2048), "range"},
      {"attention.value_length", i(16), "sizes"},
      {"context_length", i(0), "range"},
      {"context_length", i(0x7fffffff), "range"},
      {"context_length", uint64_t{1} << 63, "range"},
      {"attention.layer_norm_rms_epsilon", 0.0, "range"},
      {"attention.layer_norm_rms_epsilon", -1e-5, "range"},
      {"attention.layer_norm_rms_epsilon", 1.5, "range"},
      {"attention.layer_norm_rms_epsilon", kNan, "range"},
      {"attention.layer_norm_rms_epsilon", i(1), "type"},
      {"attention.scale", 0.0, "range"},
      {"attn_logit_softcapping", kNan, "range"},
      {"attn_logit_softcapping", -1.0, "range"},
      {"final_logit_softcapping", -1.0, "range"},
      {"rope.dimension_count", i(0), "range"},
      {"rope.dimension_count", i(10), "range"},
      {"rope.freq_base", 0.0, "range"},
      {"rope.freq_base", -1.0, "range"},
      {"rope.freq_base", kNan, "range"},
      {"rope.freq_base", kInf, "range"},
      {"rope.scaling.factor", 0.0, "range"},
      {"rope.scaling.factor", -8.0, "range"},
      {"rope.scaling.factor", kInf, "range"},
      {"rope.scaling.type", std::string("su"), "longrope"},
      {"rope.scaling.type", std::string("linear "), "linear "},
      {"rope.scaling.type", i(1), "type"},
      {"rope.scaling.original_context_length", i(0), "range"},
      {"rope.scaling.attn_factor", kNan, "range"},
      {"expert_count", i(8), "no layer has experts"},
      {"expert_count", uint64_t{1} << 63, "range"},
      {"expert_used_count", i(2), "mixture of experts"},
      {"attention.causal", false, "future"},
      {"attention.sliding_window", i(-1), "range"},
      {"attention.sliding_window", uint64_t{1} << 63, "range"},
  };
  CHECK(faults.size() >= 40);
  for (const MetadataFault& fault : faults) {
    check_refused(TinyCheckpoint().set(fault.key, fault.data).build(), "llama." + std::string(fault.key), fault.says);
  }
}

TEST_CASE("each required key is missed by name") {
  for (const char* key : {"block_count", "context_length", "embedding_length", "feed_forward_length",
                          "attention.head_count", "attention.layer_norm_rms_epsilon"}) {
    check_refused(TinyCheckpoint().erase(key).build(), "llama." + std::string(key), "missing");
  }
  check_refused(TinyCheckpoint().erase("general.architecture").build(), "general.architecture", "missing");
  check_refused(TinyCheckpoint().drop("token_embd.weight").build(), "token_embd.weight", "missing");
}

TEST_CASE("values that contradict each other are refused") {
  TinyCheckpoint heads;
  heads.erase("attention.key_length").set("attention.head_count", i(3));
  check_refused(heads.build(), "llama.attention.head_count", "does not divide");
  check_refused(TinyCheckpoint().set("attention.head_count_kv", i(3)).build(), "n_kv_heads", "does not divide");
  check_refused(TinyCheckpoint().set("rope.dimension_count", i(7)).build(), "ropes[0].dim", "odd");
  TinyCheckpoint llama3;
  llama3.set("rope.scaling.type", std::string("llama3")).set("rope.scaling.factor", 8.0);
  check_refused(llama3.build(), "llama.rope.scaling.low_freq_factor", "missing");
  llama3.set("rope.scaling.low_freq_factor", 4.0).set("rope.scaling.high_freq_factor", 4.0);
  check_refused(llama3.build(), "llama.rope.scaling.type", "below");
  TinyCheckpoint yarn;
  yarn.set("rope.scaling.type", std::string("yarn"));
  check_refused(yarn.build(), "llama.rope.scaling.factor", "missing");
}

TEST_CASE("configs with experts are what their keys and tensors say") {
  TinyShape shape;
  shape.n_experts = 5, shape.n_active = 3, shape.expert_dim = 24;
  const auto read = [&](const char* arch) { return read_config(TinyCheckpoint(arch, shape).build()); };
  const Config mixtral = read("llama");
  CHECK(mixtral.experts.n_experts == 5);
  CHECK(mixtral.experts.n_active == 3);
  CHECK(mixtral.experts.expert_dim == 24);
  CHECK(mixtral.experts.sum_to_one);
  CHECK(mixtral.ropes[0].adjacent);
  CHECK(mixtral.layers[1].experts);
  const Config qwen3 = read("qwen3moe");
  CHECK(qwen3.experts.sum_to_one);
  CHECK((qwen3.qk_norm && !qwen3.qk_norm_whole && !qwen3.ropes[0].adjacent));
  const Config olmoe = read("olmoe");
  CHECK_FALSE(olmoe.experts.sum_to_one);
  CHECK((olmoe.qk_norm && olmoe.qk_norm_whole));
  shape.n_layers = 5;
  const Config oss = read("gpt-oss");
  CHECK(oss.experts.sum_to_one);
  CHECK((oss.attn_sinks && oss.activation == Activation::silu_clamped));
  for (size_t l = 0; l < 5; ++l) CHECK(oss.layers[l].window == (l % 2 == 0 ? 16 : 0));
  shape.shared_dim = 40;
  const Config qwen2 = read("qwen2moe");
  CHECK_FALSE(qwen2.experts.sum_to_one);
  CHECK(qwen2.experts.shared_dim == 40);
}

TEST_CASE("widths of experts that a file has no key for are those of its tensors") {
  TinyShape shape;
  shape.n_experts = 3, shape.expert_dim = 24, shape.shared_dim = 40;
  TinyCheckpoint tiny("qwen2moe", shape);
  tiny.erase("expert_feed_forward_length").erase("expert_shared_feed_forward_length");
  const Config config = read_config(tiny.build());
  CHECK(config.experts.expert_dim == 24);
  CHECK(config.experts.shared_dim == 40);
}

TEST_CASE("each layer has experts or not, as its tensors say") {
  TinyShape shape;
  shape.n_experts = 3;
  TinyCheckpoint tiny("qwen3moe", shape);
  for (const char* name : {"gate_inp", "gate_exps", "up_exps", "down_exps"})
    tiny.drop("blk.0.ffn_" + std::string(name) + ".weight");
  const Config config = read_config(tiny.build());
  CHECK_FALSE(config.layers[0].experts);
  CHECK(config.layers[1].experts);
}

TEST_CASE("ways of choosing experts that nothing computes are refused by their keys") {
  TinyShape shape;
  shape.n_experts = 4;
  const std::vector<MetadataFault> faults = {
      {"expert_used_count", i(0), "range"},
      {"expert_used_count", i(5), "range"},
      {"expert_count", i(-1), "range"},
      {"expert_count", i(kMaxExperts + 1), "range"},
      {"expert_gating_func", i(2), "sigmoid"},
      {"expert_gating_func", i(9), "unsupported"},
      {"expert_group_count", i(2), "groups"},
      {"expert_weights_scale", kNan, "range"},
      {"expert_feed_forward_length", i(0), "range"},
  };
  for (const MetadataFault& fault : faults) {
    check_refused(TinyCheckpoint("qwen3moe", shape).set(fault.key, fault.data).build(),
                  "qwen3moe." + std::string(fault.key), fault.says);
  }
  TinyCheckpoint other("qwen3moe", shape);
  other.set("expert_weights_norm", false).set("expert_weights_scale", 2.5).set("expert_gating_func", i(1));
  CHECK_FALSE(read_config(other.build()).experts.sum_to_one);
  CHECK(read_config(other.build()).experts.scale == 2.5f);
  check_refused(TinyCheckpoint("olmoe", shape).set("attention.clamp_kqv", 8.0).build(), "olmoe.attention.clamp_kqv",
                "not supported");
  CHECK(read_config(TinyCheckpoint("gpt-oss", shape).build()).layers[0].window == 16);
  check_refused(TinyCheckpoint("gpt-oss", shape).set("attention.sliding_window_pattern", i(0)).build(),
                "gpt-oss.attention.sliding_window_pattern", "range");
  TinyCheckpoint gemma("gemma3");
  check_refused(gemma.set("expert_count", i(4)).build(), "gemma3.expert_count", "mixture of experts");
}

TEST_CASE("rope divisors must be as many as there are pairs, positive and finite") {
  for (const std::vector<float>& wrong : std::vector<std::vector<float>>{{1, 1, 1}, {1, 1, 1, 1, 1}}) {
    check_refused(TinyCheckpoint().numbers("rope_freqs.weight", wrong).build(), "rope_freqs.weight", "[4]");
  }
  for (float wrong : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    check_refused(TinyCheckpoint().numbers("rope_freqs.weight", {1, 1, wrong, 1}).build(), "ropes[0].divisors",
                  "range");
  }
  check_refused(TinyCheckpoint().tensor("rope_freqs.weight", {4}, DType::F16).build(), "rope_freqs.weight", "F32");
  check_refused(TinyCheckpoint().tensor("rope_freqs.weight", {2, 2}).build(), "rope_freqs.weight", "[4]");
}

TEST_CASE("an architecture is known by its exact name only") {
  for (const std::string& name : {std::string("LLAMA"), std::string("llama\0", 6), std::string("llama "), std::string(),
                                  std::string("../llama"), std::string("mamba"), std::string(1 << 20, 'x')}) {
    TinyCheckpoint tiny;
    tiny.set("general.architecture", name);
    check_refused(tiny.build(), "general.architecture", "llama, qwen2, qwen3, gemma2, gemma3");
  }
  check_refused(TinyCheckpoint().set("general.architecture", i(1)).build(), "general.architecture", "type");
}

TEST_CASE("validate refuses each field of a finished config that a pass could not survive") {
  const Config good = read_config(TinyCheckpoint().build());
  CHECK_NOTHROW(validate(good, "x"));
  const std::pair<const char*, void (*)(Config&)> edits[] = {
      {"n_layers", [](Config& c) { c.n_layers = 0; }},
      {"layers", [](Config& c) { c.layers.pop_back(); }},
      {"dim", [](Config& c) { c.dim = -1; }},
      {"dim", [](Config& c) { c.dim = INT64_MAX; }},
      {"n_heads", [](Config& c) { c.n_heads = 0; }},
      {"n_kv_heads", [](Config& c) { c.n_kv_heads = 0; }},
      {"n_kv_heads", [](Config& c) { c.n_kv_heads = 8; }},
      {"head_dim", [](Config& c) { c.head_dim = 0; }},
      {"head_dim", [](Config& c) { c.head_dim = INT64_MIN; }},
      {"ffn_dim", [](Config& c) { c.ffn_dim = 0; }},
      {"vocab", [](Config& c) { c.vocab = 0; }},
      {"vocab", [](Config& c) { c.vocab = int64_t{1} << 31; }},
      {"n_ctx_train", [](Config& c) { c.n_ctx_train = 0; }},
      {"norm_eps", [](Config& c) { c.norm_eps = std::nanf(""); }},
      {"embed_scale", [](Config& c) { c.embed_scale = 0; }},
      {"attn_scale", [](Config& c) { c.attn_scale = std::nanf(""); }},
      {"residual_scale", [](Config& c) { c.residual_scale = -1; }},
      {"logit_scale", [](Config& c) { c.logit_scale = std::numeric_limits<float>::infinity(); }},
      {"attn_softcap", [](Config& c) { c.attn_softcap = -5; }},
      {"logit_softcap", [](Config& c) { c.logit_softcap = std::nanf(""); }},
      {"ropes[0].dim", [](Config& c) { c.ropes[0].dim = 10; }},
      {"ropes[0].base", [](Config& c) { c.ropes[0].base = 0; }},
      {"ropes[0].factor", [](Config& c) { c.ropes[0].factor = 0; }},
      {"ropes[0].original_context",
       [](Config& c) { c.ropes[0].scaling = RopeScaling::yarn, c.ropes[0].original_context = 0; }},
      {"ropes[0].original_context",
       [](Config& c) { c.ropes[0].scaling = RopeScaling::dynamic, c.ropes[0].original_context = 0; }},
      {"ropes[0].factor", [](Config& c) { c.ropes[0].scaling = RopeScaling::dynamic, c.ropes[0].factor = 0.5; }},
      {"ropes[0].dim", [](Config& c) { c.ropes[0].scaling = RopeScaling::dynamic, c.ropes[0].dim = 2; }},
      {"ropes[0].divisors",
       [](Config& c) {
         c.ropes[0].long_divisors = {1, 1};
       }},
      {"ropes[0].divisors",
       [](Config& c) {
         c.ropes[0].long_divisors = {1, 1, 1, -1};
       }},
      {"ropes[0].divisors",
       [](Config& c) {
         c.ropes[0].divisors = {1, 1};
       }},
      {"window", [](Config& c) { c.layers[1].window = -1; }},
      {"rope", [](Config& c) { c.layers[0].rope = 1; }},
      {"rope", [](Config& c) { c.layers[0].rope = -2; }},
  };
  for (const auto& [field, edit] : edits) {
    INFO(field);
    Config config = good;
    edit(config);
    try {
      validate(config, "some.gguf");
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.where() == "some.gguf: " + std::string(field));
    }
  }
}
