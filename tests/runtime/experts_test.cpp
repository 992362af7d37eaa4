// Models with experts through the public interface: generation, quantisation, importance matrices, the self-test.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "infer.h"
#include "quant/formats.h"
#include "runtime/gguf.h"
#include "runtime/imatrix_file.h"
#include "runtime/quantize_plan.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::Folder;

namespace {

test::TinyModel with_experts(DType weights = DType::F32) {
  test::TinyModel model;
  model.weights = weights, model.n_experts = 5, model.n_active = 2, model.ffn_dim = 64;
  return model;
}

Model open(const std::string& path, const std::string& device, const std::string& quant = {}) {
  LoadOptions load;
  load.device = device, load.quant = quant;
  return Model::load(path, load);
}

std::vector<float> logits(const Model& model) {
  EngineOptions options;
  options.n_ctx = 64, options.k_type = options.v_type = "f32";
  Engine engine(model, options);
  std::vector<float> out;
  engine.logits(std::vector<TokenId>{7, 20, 30, 41, 52, 63, 74, 85, 96, 107, 118}, -1,
                [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); });
  return out;
}

double nmse(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  double error = 0, power = 0;
  for (size_t i = 0; i < got.size(); ++i) error += std::pow(got[i] - want[i], 2), power += std::pow(want[i], 2);
  return error / power;
}

}  // namespace

TEST_CASE("experts: a model says how many it has and how many weights a token meets") {
  const Folder folder;
  write_tiny_model(folder / "m.gguf", with_experts());
  const ModelInfo info = open(folder / "m.gguf", "cpu").info();
  CHECK(info.n_experts == 5);
  CHECK(info.n_active == 2);
  const int64_t stacks = 2 * 3 * 5 * 64 * 64;
  CHECK(info.n_params - info.n_active_params == stacks / 5 * 3);
  const Inspection inspection = Model::inspect(folder / "m.gguf");
  CHECK(inspection.refusal.empty());
  CHECK(inspection.info.n_active_params == info.n_active_params);
  LoadOptions load;
  load.device = "cpu";
  const MemoryPlan plan = Model::plan(folder / "m.gguf", {}, load);
  CHECK(plan.expert_bytes == static_cast<size_t>(stacks) * sizeof(float));
  CHECK(plan.matrix_bytes > plan.expert_bytes);
}

TEST_CASE(
    "experts: the cpu's logits are the reference's, and each format that stores the same weights gives the same") {
  const Folder folder;
  write_tiny_model(folder / "f32.gguf", with_experts());
  const std::vector<float> want = logits(open(folder / "f32.gguf", "ref"));
  CHECK(nmse(logits(open(folder / "f32.gguf", "cpu")), want) < 1e-8);
  for (const DType type : {DType::F16, DType::BF16, DType::Q8_0}) {
    write_tiny_model(folder / "other.gguf", with_experts(type));
    CHECK(logits(open(folder / "other.gguf", "ref")) == want);
    CHECK(nmse(logits(open(folder / "other.gguf", "cpu")), want) < 3e-3);
  }
}

TEST_CASE("experts: quantised as a file and while loading alike; the router stays as it is") {
  const Folder folder;
  write_tiny_model(folder / "f16.gguf", with_experts(DType::F16));
  const std::vector<float> want = logits(open(folder / "f16.gguf", "ref"));
  QuantizeOptions options;
  options.type = "Q8_0";
  quantize(folder / "f16.gguf", folder / "q8.gguf", options);
  const Checkpoint file = read_gguf(folder / "q8.gguf");
  CHECK(file.find_tensor("blk.0.ffn_gate_inp.weight")->dtype == DType::F32);
  const HostTensor* experts = file.find_tensor("blk.1.ffn_down_exps.weight");
  CHECK(experts->dtype == DType::Q8_0);
  CHECK(experts->dims == std::vector<int64_t>{5, 64, 64});
  CHECK(nmse(logits(open(folder / "q8.gguf", "ref")), want) < 1e-3);
  CHECK(logits(open(folder / "f16.gguf", "ref", "q8_0")) == logits(open(folder / "q8.gguf", "ref")));
}

TEST_CASE("experts: eight of them turn the formats that llama.cpp gives to keys, values and the attention's output") {
  const auto formats = [](int64_t n_experts) {
    Checkpoint c;
    c.metadata["general.architecture"] = {std::string("llama"), "string"};
    c.metadata["llama.block_count"] = {int64_t{16}, "u32"};
    c.metadata["llama.expert_count"] = {n_experts, "u32"};
    const auto add = [&](const std::string& name, DType type, std::vector<int64_t> dims) {
      c.tensors.push_back({name, type, std::move(dims), nullptr, 0});
    };
    add("token_embd.weight", DType::F16, {512, 256}), add("output.weight", DType::F16, {512, 256});
    for (int64_t i = 0; i < 16; ++i) {
      const std::string blk = "blk." + std::to_string(i) + ".";
      for (const char* part : {"attn_q", "attn_k", "attn_v", "attn_output"})
        add(blk + part + ".weight", DType::F16, {256, 256});
      add(blk + "ffn_gate_inp.weight", DType::F32, {n_experts, 256});
      add(blk + "ffn_down_exps.bias", DType::F32, {n_experts, 256});
      for (const char* part : {"gate", "up", "down"})
        add(blk + "ffn_" + part + "_exps.weight", DType::F16, {n_experts, 256, 256});
    }
    c.index_tensors();
    std::map<std::string, std::string> out;
    const std::vector<TensorChoice> choices = choose_formats(c, find_mix("q4_k_m"), {});
    for (size_t i = 0; i < choices.size(); ++i) out[c.tensors[i].name] = find_format(choices[i].dtype)->name;
    return out;
  };
  auto eight = formats(8), ten = formats(10);
  CHECK(eight["blk.5.attn_k.weight"] == "Q8_0");
  CHECK(eight["blk.5.attn_v.weight"] == "Q8_0");
  CHECK(eight["blk.5.attn_output.weight"] == "Q5_K");
  CHECK(ten["blk.5.attn_k.weight"] == "Q4_K");
  CHECK(ten["blk.5.attn_output.weight"] == "Q4_K");
  for (auto* of : {&eight, &ten}) {
    CHECK((*of)["blk.5.ffn_gate_inp.weight"] == "F32");
    CHECK((*of)["blk.5.ffn_down_exps.bias"] == "F32");
    CHECK((*of)["blk.5.ffn_up_exps.weight"] == "Q4_K");
    CHECK((*of)["blk.0.ffn_down_exps.weight"] == "Q6_K");
    CHECK((*of)["blk.2.ffn_down_exps.weight"] == "Q4_K");
  }
}

TEST_CASE("experts: an importance matrix has sums of its own for each, which quantising takes") {
  const Folder folder;
  write_tiny_model(folder / "m.gguf", with_experts());
  ImatrixOptions options;
  options.n_ctx = 24, options.n_ubatch = 10;
  std::string text;
  for (int i = 0; i < 60; ++i) text += std::string(1, static_cast<char>('a' + i * 7 % 26)) + " the ";
  collect_imatrix(open(folder / "m.gguf", "cpu"), text, folder / "m.imatrix", options);
  const ImatrixFile file = read_imatrix(folder / "m.imatrix");
  const ImatrixFile::Entry &router = file.entries.at("blk.1.ffn_gate_inp.weight"),
                           &gate = file.entries.at("blk.1.ffn_gate_exps.weight"),
                           &down = file.entries.at("blk.1.ffn_down_exps.weight");
  REQUIRE(gate.counts.size() == 5);
  REQUIRE(gate.sums.size() == 5 * 64);
  CHECK(down.counts == gate.counts);
  double all = 0;
  for (const double count : gate.counts) all += count;
  CHECK(all == 2 * router.counts[0]);
  CHECK(*std::max_element(gate.counts.begin(), gate.counts.end()) < router.counts[0]);
  // Each token's row goes to the router once and to two experts.
  for (size_t i = 0; i < 64; ++i) {
    double sum = 0;
    for (size_t e = 0; e < 5; ++e) sum += gate.sums[e * 64 + i];
    CHECK(sum == Approx(2 * router.sums[i]).epsilon(1e-4));
  }
  QuantizeOptions quantized;
  quantized.type = "Q4_0", quantized.imatrix = folder / "m.imatrix";
  const QuantizeReport report = quantize(folder / "m.gguf", folder / "q4.gguf", quantized);
  for (const QuantizedTensor& tensor : report.tensors)
    if (tensor.name == "blk.1.ffn_down_exps.weight") CHECK(tensor.has_importance);
  // Sums of a model with another number of experts are refused, for quantising and for going on.
  test::TinyModel other = with_experts();
  other.n_experts = 4;
  write_tiny_model(folder / "other.gguf", other);
  CHECK_THROWS_WITH(quantize(folder / "other.gguf", folder / "x.gguf", quantized), Catch::Contains("another model"));
  options.in_files = {folder / "m.imatrix"};
  CHECK_THROWS_WITH(collect_imatrix(open(folder / "other.gguf", "cpu"), text, folder / "y.imatrix", options),
                    Catch::Contains("another model"));
}

TEST_CASE("experts: the self-test knows their stage, and finds weights that are no numbers in it") {
  const Folder folder;
  test::GgufWriter file = tiny_model(with_experts());
  file.write(folder / "m.gguf");
  LoadOptions load;
  load.device = "cpu";
  const auto stages = [](const SelfTest& test) {
    return std::count_if(test.rows.begin(), test.rows.end(), [](const auto& row) { return row.op == "moe_ffn"; });
  };
  const SelfTest good = self_test(folder / "m.gguf", load);
  CHECK(good.passed);
  CHECK(stages(good) > 0);
  const float nan = std::nanf("");
  for (char* at = file.find_tensor("blk.0.ffn_down_exps.weight").data.data(); const int64_t expert : {0, 1, 2, 3, 4})
    std::memcpy(at + expert * 64 * 64 * 4, &nan, sizeof nan);
  file.write(folder / "m.gguf");
  const SelfTest bad = self_test(folder / "m.gguf", load);
  CHECK_FALSE(bad.passed);
  for (const SelfTestRow& row : bad.rows)
    if (row.op == "moe_ffn") CHECK_FALSE(row.passed);
}
