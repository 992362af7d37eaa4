// Whole models with experts, small and random: the cpu against ref, and the promise that neither the size of a step nor
// its company changes a bit, when each token goes to experts of its own.
#include "tests/catch.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_checkpoint.h"

using namespace infer;

namespace {

struct Model {
  const char* arch;
  TinyShape shape;
  bool first_dense = false;
  DType experts = DType::F32;

  Checkpoint build() const {
    TinyCheckpoint tiny(arch, shape);
    for (int64_t i = 0; i < shape.n_layers && experts != DType::F32; ++i) {
      const std::string blk = "blk." + std::to_string(i) + ".ffn_";
      tiny.tensor(blk + "gate_exps.weight", {shape.n_experts, shape.expert_dim, shape.dim}, experts);
      tiny.tensor(blk + "down_exps.weight", {shape.n_experts, shape.dim, shape.expert_dim}, experts);
    }
    if (first_dense) {
      for (const char* name : {"gate_inp", "gate_exps", "up_exps", "down_exps"})
        tiny.drop("blk.0.ffn_" + std::string(name) + ".weight");
      tiny.tensor("blk.0.ffn_gate.weight", {shape.ffn_dim, shape.dim});
      tiny.tensor("blk.0.ffn_up.weight", {shape.ffn_dim, shape.dim});
      tiny.tensor("blk.0.ffn_down.weight", {shape.dim, shape.ffn_dim});
    }
    return tiny.build();
  }
};

std::vector<Model> models() {
  TinyShape plain, odd, every;
  plain.n_experts = 6;
  odd.n_experts = 7, odd.n_active = 1, odd.expert_dim = 19, odd.shared_dim = 51, odd.n_kv_heads = 4, odd.vocab = 33;
  every.n_experts = every.n_active = 3, every.n_layers = 3;
  return {{"llama", plain},          {"llama", plain, false, DType::Q8_0},
          {"qwen2moe", odd},         {"qwen3moe", every},
          {"qwen3moe", plain, true}, {"olmoe", plain},
          {"gpt-oss", every},        {"gpt-oss", plain, false, DType::F16}};
}

std::vector<int32_t> ids(int64_t n, int64_t vocab, int64_t step) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<int32_t>((i * step + 5) % vocab));
  return out;
}

}  // namespace

TEST_CASE("models with experts give the same logits on the cpu as on ref") {
  for (const Model& model : models()) {
    Runner ref(model.build());
    const std::vector<int32_t> prompt = ids(40, model.shape.vocab, 7);
    const std::vector<float> want = ref.step({{0, prompt}});
    for (const bool fusion : {true, false}) {
      BackendOptions options;
      options.fusion = fusion, options.n_threads = 2;
      INFO(model.arch << " fusion " << fusion);
      Runner cpu(model.build(), "cpu", DType::F32, options);
      CHECK(nmse(cpu.step({{0, prompt}}), want) <= (model.experts == DType::Q8_0 ? 1e-3 : 1e-8));
    }
  }
}

TEST_CASE("with experts a prompt in chunks and sequences that share a step get the bits they get alone") {
  for (const Model& model : models()) {
    for (const char* backend : {"ref", "cpu"}) {
      INFO(model.arch << " " << backend);
      Runner alone(model.build(), backend), together(model.build(), backend);
      const std::vector<int32_t> a = ids(35, model.shape.vocab, 7), b = ids(12, model.shape.vocab, 3);
      const std::vector<float> whole_a = alone.step({{0, a}}), whole_b = alone.step({{1, b}});
      std::vector<float> want = whole_a;
      want.insert(want.end(), whole_b.begin(), whole_b.end());
      CHECK(together.step({{0, a}, {1, b}}) == want);
      int sequence = 2;
      for (const size_t size : {1, 2, 9}) {
        std::vector<float> parts;
        for (size_t at = 0; at < a.size(); at += size) {
          const auto begin = a.begin() + static_cast<std::ptrdiff_t>(at);
          const auto end = a.begin() + static_cast<std::ptrdiff_t>(std::min(a.size(), at + size));
          const std::vector<float> part = together.step({{sequence, {begin, end}}});
          parts.insert(parts.end(), part.begin(), part.end());
        }
        CHECK(parts == whole_a);
        ++sequence;
      }
    }
  }
}

TEST_CASE("the observer sees a layer's experts as its stage ffn, and unwanted rows change no wanted one") {
  const Model model = models()[5];
  Runner all(model.build(), "cpu"), last(model.build(), "cpu");
  const std::vector<int32_t> prompt = ids(20, model.shape.vocab, 11);
  std::vector<std::string> stages;
  const std::vector<float> every =
      all.step({{0, prompt}}, [&](int, const char* stage, const Tensor&) { stages.push_back(stage); });
  CHECK(std::count(stages.begin(), stages.end(), "ffn") == model.shape.n_layers);
  const std::vector<float> want(every.end() - 2 * model.shape.vocab, every.end());
  CHECK(last.step({{0, prompt, 2}}) == want);
}
