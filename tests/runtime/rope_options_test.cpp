// RopeOptions on a whole model: each is the same as the file's own key would be, those left alone change nothing, and
// scalings that depend on length go by the engine's context.
#include <cmath>
#include <filesystem>
#include <random>

#include "infer.h"
#include "tests/catch.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

constexpr int64_t kContext = 512;  // of the tiny model
constexpr int kPairs = 8;

struct File {
  std::string path;
  explicit File(const test::GgufWriter& writer) {
    static int n = 0;
    path = (std::filesystem::temp_directory_path() /
            ("infer_rope_" + std::to_string(std::random_device()()) + "_" + std::to_string(n++) + ".gguf"))
               .string();
    writer.write(path);
  }
  ~File() { std::filesystem::remove(path); }
};

/// Logits of the last of some tokens.
std::vector<float> logits(const File& file, const LoadOptions& options, int64_t n_ctx = 64) {
  LoadOptions on_ref = options;
  on_ref.device = "ref";
  EngineOptions engine;
  engine.n_ctx = n_ctx;
  Engine made(Model::load(file.path, on_ref), engine);
  std::vector<TokenId> ids;
  for (TokenId id = 10; id < 30; ++id) ids.push_back(id);
  std::vector<float> out;
  made.logits(ids, -1, [&](int64_t, std::span<const float> row) { out.assign(row.begin(), row.end()); });
  return out;
}

LoadOptions with(const RopeOptions& rope) {
  LoadOptions options;
  options.rope = rope;
  return options;
}

LoadOptions with(std::vector<MetadataOverride> overrides) {
  LoadOptions options;
  options.overrides = std::move(overrides);
  return options;
}

std::string le_floats(const std::vector<float>& values) {
  std::string out;
  for (float v : values) out += test::le(v);
  return out;
}

/// `small` and `large`: all divisors for short contexts, for long ones.
test::GgufWriter longrope(float small, float large) {
  test::GgufWriter file = test::tiny_model();
  file.number("llama.rope.scaling.original_context_length", 64);
  file.real("llama.rope.scaling.attn_factor", 1);
  file.tensor("rope_factors_short.weight", DType::F32, {kPairs}, le_floats(std::vector<float>(kPairs, small)));
  file.tensor("rope_factors_long.weight", DType::F32, {kPairs}, le_floats(std::vector<float>(kPairs, large)));
  return file;
}

}  // namespace

TEST_CASE("rope options are the keys of a file") {
  const File file(test::tiny_model());
  const std::vector<float> plain = logits(file, {});
  RopeOptions base, scale, yarn;
  base.freq_base = 5e4;
  scale.freq_scale = 0.25;
  yarn.scaling = "yarn", yarn.freq_scale = 0.25, yarn.yarn_orig_ctx = 128;
  yarn.yarn_ext_factor = 0.5, yarn.yarn_attn_factor = 1.25, yarn.yarn_beta_fast = 8, yarn.yarn_beta_slow = 2;
  CHECK(logits(file, with(RopeOptions{})) == plain);
  CHECK(logits(file, with(base)) == logits(file, with({{"llama.rope.freq_base", "float", "50000"}})));
  CHECK(logits(file, with(scale)) == logits(file, with({{"llama.rope.scaling.factor", "float", "4"}})));
  CHECK(logits(file, with(yarn)) == logits(file, with({{"llama.rope.scaling.type", "str", "yarn"},
                                                       {"llama.rope.scaling.factor", "float", "4"},
                                                       {"llama.rope.scaling.original_context_length", "int", "128"},
                                                       {"llama.rope.scaling.yarn_ext_factor", "float", "0.5"},
                                                       {"llama.rope.scaling.yarn_attn_factor", "float", "1.25"},
                                                       {"llama.rope.scaling.yarn_beta_fast", "float", "8"},
                                                       {"llama.rope.scaling.yarn_beta_slow", "float", "2"}})));
  for (const RopeOptions& rope : {base, scale, yarn}) CHECK(logits(file, with(rope)) != plain);
}

TEST_CASE("rope options that make no sense are refused as usage, by their names") {
  const File file(test::tiny_model());
  const auto refused = [&](const char* field, const RopeOptions& rope) {
    INFO(field);
    try {
      Model::load(file.path, with(rope));
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::usage);
      CHECK_THAT(error.what(), Catch::Contains(field));
    }
  };
  RopeOptions rope;
  rope.scaling = "longrope";
  refused("scaling", rope);
  rope = {}, rope.freq_base = 0.5;
  refused("freq_base", rope);
  rope = {}, rope.freq_base = std::nan("");
  refused("freq_base", rope);
  rope = {}, rope.freq_scale = -1;
  refused("freq_scale", rope);
  rope = {}, rope.yarn_orig_ctx = -1;
  refused("yarn_orig_ctx", rope);
  rope = {}, rope.yarn_ext_factor = 2;
  refused("yarn_ext_factor", rope);
  rope = {}, rope.yarn_attn_factor = 0;
  refused("yarn_attn_factor", rope);
  rope = {}, rope.yarn_beta_fast = -2;
  refused("yarn_beta_fast", rope);
}

TEST_CASE("a longrope goes by the context of the engine, whatever the text's length") {
  const File both(longrope(1, 3)), small(longrope(1, 1)), large(longrope(3, 3));
  CHECK(logits(both, {}, 64) == logits(small, {}, 64));
  CHECK(logits(both, {}, 65) == logits(large, {}, 65));
  CHECK(logits(both, {}, 64) != logits(both, {}, 65));
}

TEST_CASE("a dynamic rope is plain in the original context and stretched in a longer one") {
  const File file(test::tiny_model());
  RopeOptions dynamic;
  dynamic.scaling = "dynamic", dynamic.freq_scale = 0.5;
  const std::vector<float> plain = logits(file, {});
  CHECK(logits(file, with(dynamic), kContext) == plain);
  CHECK(logits(file, with(dynamic), 2 * kContext) != plain);
  dynamic.yarn_orig_ctx = kContext / 2;
  CHECK(logits(file, with(dynamic), kContext) != plain);
  // Twice the original context with a factor of 2: the base grows by 3^(16 / 14).
  RopeOptions base;
  base.freq_base = 10000 * std::pow(3.0, 16.0 / 14);
  CHECK(logits(file, with(dynamic), kContext)[5] == Approx(logits(file, with(base))[5]).epsilon(1e-4));
}
