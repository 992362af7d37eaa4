// Profiles: every byte that the plan knows of is counted, every launch belongs to a stage, and who is looked at
// computes what he computes otherwise. Times are only compared with each other where one is part of the other.
#include <cmath>
#include <map>

#include "infer.h"
#include "kernels/ops.h"
#include "kernels/timed_backend.h"
#include "runtime/engine_impl.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::TinyModel;

namespace {

const test::Folder& folder() {
  static const test::Folder folder;
  return folder;
}

Model load(const std::string& name, const TinyModel& tiny, const std::string& device = "cpu") {
  const std::string path = folder() / name;
  if (!std::filesystem::exists(path)) test::write_tiny_model(path, tiny);
  LoadOptions options;
  options.device = device;
  options.n_threads = 2;
  return Model::load(path, options);
}

EngineOptions engine_options(int64_t n_ubatch = 512) {
  EngineOptions o;
  o.n_ctx = 256, o.n_threads = 2;
  o.n_batch = o.n_ubatch = n_ubatch;
  return o;
}

ProfileOptions what(int64_t n_prompt, int64_t n_gen, int64_t depth = 0) {
  ProfileOptions o;
  o.n_prompt = n_prompt, o.n_gen = n_gen, o.depth = depth;
  o.repetitions = 2;
  return o;
}

std::map<std::string, StageProfile> by_name(const StepProfile& profile) {
  std::map<std::string, StageProfile> out;
  for (const StageProfile& s : profile.stages) out[s.stage] = s;
  CHECK(out.size() == profile.stages.size());
  return out;
}

double weight_bytes(const StepProfile& profile) {
  double sum = 0;
  for (const StageProfile& s : profile.stages) sum += s.weight_bytes;
  return sum;
}

std::string usage_error(const Model& model, const ProfileOptions& options) {
  try {
    profile_steps(model, engine_options(), options);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("profile: the weights of a generated token are exactly those that the model says it streams") {
  struct Case {
    const char* name;
    TinyModel tiny;
  };
  const Case cases[] = {{"f32.gguf", {}},
                        {"f16.gguf", {.weights = DType::F16}},
                        {"q8_0.gguf", {.weights = DType::Q8_0}},
                        {"experts.gguf", {.weights = DType::Q8_0, .n_experts = 6, .n_active = 2}}};
  for (const Case& c : cases) {
    for (const char* device : {"cpu", "ref"}) {
      INFO(c.name << " on " << device);
      const Model model = load(c.name, c.tiny, device);
      const StepProfile profile = profile_steps(model, engine_options(), what(0, 3, 5));
      CHECK(profile.n_tokens == 6);
      CHECK(profile.n_steps == 6);
      CHECK(std::llround(weight_bytes(profile) / 6) == static_cast<long long>(model.info().stream_bytes));
    }
  }
}

TEST_CASE("profile: so it is for models with norms of heads, norms of branches, tied heads and mixed formats") {
  for (const char* name : {"gemma3", "gguf_q4_k_m", "llama3_rope"}) {
    LoadOptions options;
    options.device = "cpu";
    options.n_threads = 2;
    const Model model = Model::load(std::string(TEST_DATA) + "/models/" + name + "/model.gguf", options);
    EngineOptions engine = engine_options();
    engine.n_ctx = 32;
    const StepProfile profile = profile_steps(model, engine, what(0, 2));
    INFO(name);
    CHECK(std::llround(weight_bytes(profile) / 4) == static_cast<long long>(model.info().stream_bytes));
  }
}

TEST_CASE("profile: a prompt reads its weights once per step, and each stage has its calls and operations") {
  const Model model = load("q8_0.gguf", {.weights = DType::Q8_0});
  const ModelInfo& info = model.info();
  const StepProfile profile = profile_steps(model, engine_options(32), what(70, 0));
  CHECK(profile.n_tokens == 140);
  CHECK(profile.n_steps == 6);  // 32, 32 and 6 tokens, twice
  const auto stages = by_name(profile);
  CHECK(stages.at("embed").n_calls == 6);
  CHECK(stages.at("attn_in").n_calls == 6 * info.n_layers);
  // Steps that nobody wants logits of, two of three, end with the keys and values of the last layer.
  for (const char* name : {"attention", "attn_out", "ffn"}) CHECK(stages.at(name).n_calls == 6 * info.n_layers - 4);
  CHECK(stages.at("gather").n_calls == 4);  // of x and of what attention gave, to the one row that is wanted
  CHECK(stages.at("logits").n_calls == 2);
  const double weights = 3.0 * static_cast<double>(info.dim * info.ffn_dim);  // of one layer
  const double products = 2 * weights * static_cast<double>(140 * (info.n_layers - 1) + 2);
  const StageProfile& ffn = stages.at("ffn");
  CHECK(ffn.flops >= products);
  CHECK(ffn.flops <= 1.1 * products);
  const double bytes = weights * 34 / 32 + static_cast<double>(info.dim) * 4;  // Q8_0, and the norm
  CHECK(ffn.weight_bytes == Approx(static_cast<double>(ffn.n_calls) * bytes));
  CHECK(ffn.call_bytes > bytes);
}

TEST_CASE("profile: many sequences share a step, and the weights that it reads") {
  const Model model = load("q8_0.gguf", {.weights = DType::Q8_0});
  ProfileOptions many = what(0, 3, 40);
  many.n_seqs = 4;
  const StepProfile one = profile_steps(model, engine_options(), what(0, 3, 40));
  const StepProfile four = profile_steps(model, engine_options(), many);
  CHECK(four.n_steps == one.n_steps);
  CHECK(four.n_tokens == 4 * one.n_tokens);
  const auto stages = by_name(four), alone = by_name(one);
  CHECK(stages.at("ffn").weight_bytes == alone.at("ffn").weight_bytes);
  CHECK(stages.at("ffn").flops == Approx(4 * alone.at("ffn").flops));
  CHECK(stages.at("attention").activation_bytes == Approx(4 * alone.at("attention").activation_bytes));
  CHECK(stages.at("logits").n_calls == alone.at("logits").n_calls);
  CHECK(stages.at("ffn").kernels.empty());  // a CPU has none
  CHECK(four.step_kernels.empty());

  // Prompts of 20 tokens in steps of 32: two steps for three of them, the second sequence in both.
  many = what(20, 0);
  many.n_seqs = 3;
  const StepProfile prompts = profile_steps(model, engine_options(32), many);
  CHECK(prompts.n_steps == 2 * 2);
  CHECK(prompts.n_tokens == 2 * 60);
  CHECK(by_name(prompts).at("logits").n_calls == 4);
  many.n_seqs = 0;
  CHECK(usage_error(model, many).find("n_seqs") != std::string::npos);
}

TEST_CASE("profile: attention reads the cache of all tokens so far, within its window") {
  CHECK(seen_positions(0, 4, 0) == 1 + 2 + 3 + 4);
  CHECK(seen_positions(10, 2, 0) == 11 + 12);
  CHECK(seen_positions(0, 5, 3) == 1 + 2 + 3 + 3 + 3);
  const Model model = load("f16.gguf", {.weights = DType::F16});
  const ModelInfo& info = model.info();
  const auto attention = by_name(profile_steps(model, engine_options(), what(0, 2, 40))).at("attention");
  const double kv = static_cast<double>(info.n_kv_heads * info.head_dim * 2 * 2);  // f16, K and V
  const double q_and_out = static_cast<double>(info.n_heads * info.head_dim * 2 * 4);
  const double layers = static_cast<double>(info.n_layers);
  CHECK(attention.activation_bytes == 2 * layers * ((41 + 42) * kv + 2 * q_and_out));
  CHECK(attention.flops == 2 * layers * 4 * (41 + 42) * static_cast<double>(info.n_heads * info.head_dim));
}

TEST_CASE("profile: stages lie within their steps, and all launches are a stage's") {
  const Model model = load("f32.gguf", {});
  for (const ProfileOptions& options : {what(33, 0), what(0, 4, 9)}) {
    const StepProfile profile = profile_steps(model, engine_options(), options);
    double seconds = 0;
    int64_t launches = 0;
    for (const StageProfile& s : profile.stages) {
      CHECK(s.seconds > 0);
      seconds += s.seconds, launches += s.n_launches;
    }
    CHECK(seconds <= profile.step_seconds);
    CHECK(launches == profile.n_whole_launches);  // the CPU runs the same regions whether or not it is looked at
    CHECK(profile.whole_seconds <= profile.wall_seconds);
    CHECK(profile.launch_seconds > 0);
    CHECK(profile.device.starts_with("cpu ("));
  }
}

TEST_CASE("profile: stages that are not fused stay one row, with the same bytes and more launches") {
  const Model model = load("f16.gguf", {.weights = DType::F16});
  EngineOptions without = engine_options();
  without.unfused = {"ffn"};
  const auto fused = by_name(profile_steps(model, engine_options(), what(0, 2)));
  const StepProfile composed = profile_steps(model, without, what(0, 2));
  const auto stages = by_name(composed);
  CHECK(composed.device.find("no fusion of ffn") != std::string::npos);
  CHECK(stages.at("ffn").weight_bytes == fused.at("ffn").weight_bytes);
  CHECK(stages.at("ffn").n_launches > fused.at("ffn").n_launches);
  CHECK(stages.at("attn_in").n_launches == fused.at("attn_in").n_launches);
}

TEST_CASE("profile: who is looked at computes the same tokens") {
  const Model model = load("q8_0.gguf", {.weights = DType::Q8_0});
  Request request;
  request.ids = {3, 1, 4, 1, 5, 9, 2, 6};
  request.sampling.temperature = 0, request.sampling.ignore_eos = true;
  request.max_tokens = 12;
  const auto wanted = Engine(model, engine_options()).generate(request).ids;
  REQUIRE(wanted.size() == 12);
  for (const auto look : {TimedBackend::Look::nothing, TimedBackend::Look::steps, TimedBackend::Look::ops}) {
    auto backend = std::make_unique<TimedBackend>(make_engine_backend(model.impl(), engine_options()));
    TimedBackend& timed = *backend;
    timed.look_at(look);
    Engine engine(std::make_unique<Engine::Impl>(model, engine_options(), std::move(backend)));
    CHECK(engine.generate(request).ids == wanted);
    timed.collect();
    CHECK(timed.steps(look).n_steps == (look == TimedBackend::Look::nothing ? 0 : 12));
    CHECK(timed.ops().empty() == (look != TimedBackend::Look::ops));
  }
}

TEST_CASE("profile: the host's time is made of steps and of what lies between them") {
  const Model model = load("f32.gguf", {});
  const HostProfile host = profile_host(model, engine_options(), what(0, 20, 7));
  CHECK(host.host_computes);
  CHECK(host.n_tokens == 20);
  CHECK(host.n_steps_ahead == 0);
  CHECK(host.n_waits == 0);
  CHECK(host.n_launches % 20 == 0);
  CHECK(host.n_launches > 0);
  CHECK(host.busy_seconds > 0);
  CHECK(host.busy_seconds + host.gap_seconds <= host.wall_seconds);
  CHECK(host.step_cpu_seconds <= host.cpu_seconds);
}

TEST_CASE("profile: what makes no sense is refused, and Ctrl-C is heard") {
  const Model model = load("f32.gguf", {});
  CHECK(usage_error(model, what(0, 0)).find("n_prompt and n_gen") != std::string::npos);
  CHECK(usage_error(model, what(4, 4)).find("n_prompt and n_gen") != std::string::npos);
  CHECK(usage_error(model, what(-1, 0)).find("n_prompt") != std::string::npos);
  CHECK(usage_error(model, what(0, 4, 300)).find("longer than the context") != std::string::npos);
  ProfileOptions options = what(4, 0);
  options.repetitions = 0;
  CHECK(usage_error(model, options).find("repetitions") != std::string::npos);
  CHECK_THROWS_AS(profile_host(model, engine_options(), what(4, 0)), Error);
  options = what(0, 4);
  options.go_on = [] { return false; };
  CHECK_THROWS_WITH(profile_steps(model, engine_options(), options), Catch::Contains("cancelled"));
  EngineOptions unknown = engine_options();
  unknown.unfused = {"norm"};
  CHECK_THROWS_AS(profile_steps(model, unknown, what(4, 0)), Error);
}
