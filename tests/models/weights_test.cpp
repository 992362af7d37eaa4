// Binding: what a config calls for must be there, whole and in a usable format, and nothing else may be. Loading: the
// same weights with any number of threads, progress that can stop it, and a search for numbers that are none.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "models/arch.h"
#include "models/parallel.h"
#include "models/weights.h"
#include "tests/catch.h"
#include "tests/models/tiny_checkpoint.h"

using namespace infer;

namespace {

Weights load(const TinyCheckpoint& tiny, bool check_tensors = true, int n_threads = 2) {
  const Checkpoint checkpoint = tiny.build();
  const auto backend = make_backend("ref");
  return load_weights(checkpoint, read_config(checkpoint), *backend, n_threads, check_tensors, nullptr);
}

void check_refused(const TinyCheckpoint& tiny, const std::string& tensor, const std::string& says) {
  INFO(tensor);
  try {
    load(tiny);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(error.kind() == ErrorKind::bad_file);
    CHECK_THAT(error.what(), Catch::Contains(tensor) && Catch::Contains(says));
  }
}

}  // namespace

TEST_CASE("weights are bound to their fields; without output.weight the head is the embedding") {
  TinyCheckpoint tiny;
  tiny.tensor("blk.1.attn_q.bias", {32}, DType::F16);
  const Weights w = load(tiny);
  REQUIRE(w.layers.size() == 2);
  CHECK(w.embed.data == w.head.data);
  CHECK(w.embed.dims[0] == 40);
  CHECK(w.layers[0].wq.dims[1] == 32);
  CHECK(w.layers[1].w_down.dims[1] == 64);
  CHECK(!w.layers[0].bq);
  REQUIRE(w.layers[1].bq);
  CHECK(w.layers[1].bq.dtype == DType::F32);
  CHECK(!w.layers[0].q_norm);
  CHECK(std::memcmp(w.output_norm.data, tiny.values("output_norm.weight"), 32 * sizeof(float)) == 0);

  const size_t norms = 5 * 32, bias = 32, embed = 40 * 32, layer = 32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 64;
  CHECK(w.n_params == embed + 2 * layer + norms + bias);
  CHECK(w.packed_bytes == 4 * (norms + bias));
  CHECK(w.file_bytes == 4 * (embed + 2 * layer));
  CHECK(w.stream_bytes == 4 * (embed + 2 * layer + norms + bias) + 4 * 32);
}

TEST_CASE("an untied head is its own tensor, and a gemma3 has its four more norms") {
  TinyCheckpoint untied;
  const Weights w = load(untied.tensor("output.weight", {40, 32}, DType::F16));
  CHECK(w.head.data != w.embed.data);
  CHECK(w.head.dtype == DType::F16);
  const Weights gemma = load(TinyCheckpoint("gemma3"));
  for (const LayerWeights& layer : gemma.layers) {
    CHECK(layer.q_norm);
    CHECK(layer.k_norm);
    CHECK(layer.attn_post_norm);
    CHECK(layer.ffn_post_norm);
  }
}

TEST_CASE("a fused tensor is its parts, one after the other") {
  TinyCheckpoint tiny("phi3");
  tiny.tensor("blk.1.attn_qkv.bias", {32 + 16 + 16}, DType::F16);
  const Weights w = load(tiny);
  const float* qkv = tiny.values("blk.0.attn_qkv.weight");
  const float* gate_up = tiny.values("blk.0.ffn_up.weight");
  const LayerWeights& layer = w.layers[0];
  const struct {
    const Tensor& part;
    const float* at;
    int64_t rows;
  } parts[] = {{layer.wq, qkv, 32},
               {layer.wk, qkv + 32 * 32, 16},
               {layer.wv, qkv + 48 * 32, 16},
               {layer.w_gate, gate_up, 64},
               {layer.w_up, gate_up + 64 * 32, 64}};
  for (const auto& [part, at, rows] : parts) {
    REQUIRE(part.rows() == rows);
    REQUIRE(part.cols() == 32);
    CHECK(std::memcmp(part.data, at, static_cast<size_t>(rows) * 32 * sizeof(float)) == 0);
  }
  CHECK(!layer.bq);
  REQUIRE(w.layers[1].bv);
  CHECK(w.layers[1].bq.rows() == 32);
  CHECK(w.layers[1].bk.rows() == 16);
  CHECK(w.layers[1].bv.rows() == 16);

  const size_t norms = 5 * 32, bias = 64, embed = 40 * 32, matrices = 2 * (64 + 32 + 3 * 64) * 32;
  CHECK(w.n_params == embed + norms + bias + matrices);
  CHECK(w.file_bytes == 4 * (embed + matrices));
  CHECK(w.stream_bytes == 4 * (embed + matrices + norms + bias) + 4 * 32);
  // Each tensor of the file counts once, with the first of its parts.
  std::vector<std::string> names;
  for (const NamedMatrix& matrix : w.matrices) names.push_back(matrix.name);
  CHECK(std::count(names.begin(), names.end(), "blk.0.attn_qkv.weight") == 1);
  CHECK(std::count(names.begin(), names.end(), "blk.0.ffn_up.weight") == 1);
  CHECK(std::find(names.begin(), names.end(), "blk.0.attn_k.weight") == names.end());
}

TEST_CASE("a number that is not finite is told by its index in the file, of fused tensors and of such yet to be made") {
  const auto refusal = [](const Checkpoint& checkpoint) {
    const auto backend = make_backend("ref");
    try {
      load_weights(checkpoint, read_config(checkpoint), *backend, 2, true, nullptr);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const std::pair<const char*, int> places[] = {{"blk.0.attn_qkv.bias", 63}, {"blk.0.attn_qkv.weight", 50 * 32 + 3}};
  for (const auto& [name, index] : places) {
    TinyCheckpoint tiny("phi3");
    tiny.tensor("blk.0.attn_qkv.bias", {64});
    REQUIRE(refusal(tiny.build()) == "accepted");
    tiny.values(name)[index] = std::numeric_limits<float>::quiet_NaN();
    Checkpoint checkpoint = tiny.build();
    const std::string says = std::string(name) + ": not a finite number at index " + std::to_string(index);
    CHECK_THAT(refusal(checkpoint), Catch::Contains(says));
    for (HostTensor& tensor : checkpoint.tensors) {
      if (tensor.name != "blk.0.attn_qkv.weight") continue;
      tensor.make = [lying = tensor](int64_t first, int64_t n, std::byte* to) { lying.copy_rows(first, n, to); };
      tensor.data = nullptr;
    }
    CHECK_THAT(refusal(checkpoint), Catch::Contains(says));
  }
}

TEST_CASE("parts of a fused tensor keep its bytes when it is quantised") {
  TinyCheckpoint tiny("phi3");
  tiny.tensor("blk.0.attn_qkv.weight", {64, 32}, DType::Q8_0);
  const Checkpoint checkpoint = tiny.build();
  const std::byte* bytes = checkpoint.find_tensor("blk.0.attn_qkv.weight")->data;
  Weights weights;
  int64_t before = 0;
  for (const BoundTensor& t : bind_weights(checkpoint, read_config(checkpoint), weights)) {
    if (t.source->data != bytes) continue;
    CHECK(t.host.as<std::byte>() == bytes + before * 34);  // a row of 32 is one block of 34 bytes
    before += t.host.rows();
  }
  CHECK(before == 64);
}

TEST_CASE("a fused tensor of the wrong size is refused, and so is one beside its parts") {
  check_refused(TinyCheckpoint("phi3").tensor("blk.0.attn_qkv.weight", {63, 32}), "blk.0.attn_qkv.weight", "[64, 32]");
  check_refused(TinyCheckpoint("phi3").tensor("blk.0.attn_qkv.bias", {32}), "blk.0.attn_qkv.bias", "[64]");
  check_refused(TinyCheckpoint("phi3").tensor("blk.1.ffn_up.weight", {127, 32}), "blk.1.ffn_gate.weight", "missing");
  check_refused(TinyCheckpoint().tensor("blk.0.attn_qkv.weight", {64, 32}), "blk.0.attn_qkv.weight", "unexpected");
  TinyCheckpoint bad("phi3");
  bad.values("blk.0.ffn_up.weight")[64 * 32 + 5] = std::nanf("");
  check_refused(bad, "blk.0.ffn_up.weight", "index " + std::to_string(64 * 32 + 5));
}

TEST_CASE("every required tensor is missed by name") {
  for (const char* arch : {"llama", "gemma3", "gemma2", "qwen3"}) {
    const TinyCheckpoint whole(arch);
    for (const HostTensor& tensor : whole.build().tensors) {
      TinyCheckpoint tiny(arch);
      check_refused(tiny.drop(tensor.name), tensor.name, "missing");
    }
  }
  check_refused(TinyCheckpoint().set("block_count", int64_t{3}), "blk.2.attn_norm.weight", "block_count 3");
}

namespace {

TinyShape with_experts() {
  TinyShape shape;
  shape.n_experts = 5, shape.n_active = 2, shape.expert_dim = 24;
  return shape;
}

}  // namespace

TEST_CASE("stacks of experts are bound whole, and a token reads its own experts of them") {
  TinyShape shape = with_experts();
  shape.shared_dim = 40;
  TinyCheckpoint tiny("qwen2moe", shape);
  tiny.tensor("blk.1.ffn_gate_inp_shexp.weight", {1, 32}).tensor("blk.0.ffn_gate_exps.bias", {5, 24});
  const Weights w = load(tiny);
  CHECK(w.layers[0].w_gate.n_dims == 3);
  CHECK(w.layers[0].w_down.dims[1] == 32);
  CHECK(w.layers[0].b_gate.n_elements() == 5 * 24);
  CHECK(w.layers[1].shared_mix.n_elements() == 32);
  CHECK(w.layers[1].w_shared_down.dims[1] == 40);
  const size_t stacks = 2 * 3 * 5 * 24 * 32 + 5 * 24;  // and the bias
  size_t all = 0;
  for (const HostTensor& tensor : tiny.build().tensors) all += static_cast<size_t>(tensor.n_elements());
  CHECK(w.n_params == all);
  CHECK(w.stream_bytes == 4 * (all - stacks + stacks / 5 * 2 + 32));
}

TEST_CASE("every tensor that experts need is missed by name, and others than theirs are refused") {
  for (const char* arch : {"llama", "qwen2moe", "qwen3moe", "olmoe", "gpt-oss"}) {
    TinyShape shape = with_experts();
    if (std::string(arch) == "qwen2moe") shape.shared_dim = 40;
    const TinyCheckpoint whole(arch, shape);
    CHECK_NOTHROW(load(whole));
    for (const HostTensor& tensor : whole.build().tensors) {
      TinyCheckpoint tiny(arch, shape);
      check_refused(tiny.drop(tensor.name), tensor.name, "missing");
    }
    check_refused(TinyCheckpoint(arch, shape).tensor("blk.0.ffn_gate.weight", {64, 32}), "blk.0.ffn_gate.weight",
                  "unexpected");
    check_refused(TinyCheckpoint(arch, shape).tensor("blk.1.ffn_up_exps.weight", {5, 32, 24}), "ffn_up_exps",
                  "[5, 24, 32]");
    check_refused(TinyCheckpoint(arch, shape).tensor("blk.1.ffn_down_exps.weight", {4, 32, 24}), "ffn_down_exps",
                  "[5, 32, 24]");
    check_refused(TinyCheckpoint(arch, shape).tensor("blk.0.ffn_gate_inp.weight", {4, 32}), "ffn_gate_inp", "[5, 32]");
  }
}

TEST_CASE("claims of many layers are compared with the tensors before anything is allocated") {
  const Checkpoint checkpoint = TinyCheckpoint().set("block_count", int64_t{1024}).build();
  const Config config = read_config(checkpoint);
  const auto start = std::chrono::steady_clock::now();
  Weights weights;
  CHECK_THROWS_WITH(bind_weights(checkpoint, config, weights), Catch::Contains("blk.2.attn_norm.weight"));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
}

TEST_CASE("tensors that nothing asked for are refused, but for known leftovers") {
  check_refused(TinyCheckpoint().tensor("blk.0.attn_q_norm.weight", {8}), "blk.0.attn_q_norm.weight", "unexpected");
  check_refused(TinyCheckpoint().tensor("blk.2.attn_norm.weight", {32}), "blk.2.attn_norm.weight", "2 layers");
  check_refused(TinyCheckpoint().tensor("blk.0.ffn_gate_exps.weight", {32}), "ffn_gate_exps", "unexpected");
  check_refused(TinyCheckpoint().tensor("x\x1b[31m", {1}), "x\\x1b[31m", "unexpected");
  CHECK_NOTHROW(load(TinyCheckpoint().tensor("blk.0.attn_rot_embd.weight", {4})));
  CHECK_NOTHROW(load(TinyCheckpoint().numbers("rope_freqs.weight", {1, 2, 3, 4})));
  TinyCheckpoint longrope;
  longrope.numbers("rope_factors_short.weight", {1, 2, 3, 4}).numbers("rope_factors_long.weight", {1, 2, 3, 4});
  CHECK_NOTHROW(load(longrope));
}

TEST_CASE("wrong shapes are refused with what was found and expected") {
  const struct {
    const char* name;
    std::vector<int64_t> dims;
    const char* expected;
  } edits[] = {
      {"token_embd.weight", {40, 16}, "[40, 32]"},
      {"output_norm.weight", {31}, "[32]"},
      {"output_norm.weight", {1, 32}, "[32]"},
      {"blk.0.attn_q.weight", {64, 16}, "[32, 32]"},
      {"blk.0.attn_q.weight", {1024}, "[32, 32]"},
      {"blk.1.attn_k.weight", {32, 16}, "[16, 32]"},
      {"blk.1.attn_v.weight", {32, 32}, "[16, 32]"},
      {"blk.0.attn_output.weight", {32, 32, 1}, "[32, 32]"},
      {"blk.0.ffn_gate.weight", {32, 64}, "[64, 32]"},
      {"blk.0.ffn_up.weight", {63, 32}, "[64, 32]"},
      {"blk.1.ffn_down.weight", {64, 32}, "[32, 64]"},
      {"blk.0.ffn_norm.weight", {64}, "[32]"},
      {"blk.0.attn_q.bias", {16}, "[32]"},
      {"blk.0.attn_k.bias", {32}, "[16]"},
      {"output.weight", {39, 32}, "[40, 32]"},
      {"output.bias", {41}, "[40]"},
  };
  for (const auto& edit : edits) {
    check_refused(TinyCheckpoint().tensor(edit.name, edit.dims), edit.name, edit.expected);
  }
}

TEST_CASE("formats are allowed per role") {
  for (DType dtype : {DType::I8, DType::I32, DType::I64, DType::F64, DType::Q8_1, DType::Q8_K}) {
    INFO(format_name(dtype));
    const std::vector<int64_t> wide = {40, 32};
    if (dtype != DType::Q8_K) {
      check_refused(TinyCheckpoint().tensor("token_embd.weight", wide, dtype), "token_embd.weight", format_name(dtype));
      check_refused(TinyCheckpoint().tensor("output_norm.weight", {32}, dtype), "output_norm.weight",
                    format_name(dtype));
    }
    TinyShape shape;
    shape.dim = shape.ffn_dim = 256;
    shape.head_dim = 64;
    check_refused(TinyCheckpoint("llama", shape).tensor("blk.0.attn_q.weight", {256, 256}, dtype),
                  "blk.0.attn_q.weight", "Q4_K");
  }
  check_refused(TinyCheckpoint().tensor("output_norm.weight", {32}, DType::Q8_0), "output_norm.weight", "Q8_0");
  CHECK_NOTHROW(load(TinyCheckpoint().tensor("output_norm.weight", {32}, DType::BF16)));
  CHECK_NOTHROW(load(TinyCheckpoint().tensor("blk.0.ffn_up.weight", {64, 32}, DType::Q8_0)));
}

TEST_CASE("what a model asks of a backend follows from its tensors") {
  TinyCheckpoint tiny;
  tiny.tensor("blk.0.ffn_up.weight", {64, 32}, DType::Q8_0);
  const Checkpoint checkpoint = tiny.build();
  const Config config = read_config(checkpoint);
  Weights weights;
  const auto bound = bind_weights(checkpoint, config, weights);
  const Needs needs = model_needs(config, bound);
  CHECK(needs.matrix_formats == std::vector<DType>{DType::F32, DType::Q8_0});
  CHECK(needs.embedding_formats == std::vector<DType>{DType::F32});
  CHECK(needs.head_dim == 8);
  CHECK(needs.n_heads == 4);
  CHECK(needs.max_width == 64);
  const auto backend = make_backend("ref");
  CHECK(planned_packed_bytes(bound, *backend) >= 5 * 32 * sizeof(float));
}

TEST_CASE("what experts ask of a backend is told, and the GPU refuses them by name") {
  TinyShape shape = with_experts();
  shape.head_dim = 32;
  TinyCheckpoint tiny("olmoe", shape);
  tiny.tensor("blk.0.ffn_up_exps.weight", {5, 24, 32}, DType::Q8_0);
  const Checkpoint checkpoint = tiny.build();
  Weights weights;
  const Config config = read_config(checkpoint);
  const Needs needs = model_needs(config, bind_weights(checkpoint, config, weights));
  CHECK(needs.n_experts == 5);
  CHECK(needs.n_active == 2);
  CHECK(needs.expert_width == 32);
  CHECK(needs.expert_formats == std::vector<DType>{DType::F32, DType::Q8_0});
  CHECK(needs.fine_formats.empty());
  CHECK(needs.whole_qk_norm);
  const DeviceRow* cuda = find_backend("cuda").devices;
  REQUIRE(cuda);
  CHECK(cuda->refusal(needs).empty());
}

TEST_CASE("matrices in BF16 and MXFP4 of a model with experts are fine ones, of a model without them they are not") {
  const auto roles = [](const TinyCheckpoint& tiny) {
    const Checkpoint checkpoint = tiny.build();
    Weights weights;
    std::map<std::string, WeightRole> of;
    for (const BoundTensor& t : bind_weights(checkpoint, read_config(checkpoint), weights))
      of.emplace(t.source->name, t.role);
    return of;
  };
  TinyShape shape = with_experts();
  shape.head_dim = 32;
  TinyCheckpoint olmoe("olmoe", shape), llama;
  olmoe.tensor("blk.0.ffn_up_exps.weight", {5, 24, 32}, DType::BF16);
  olmoe.tensor("blk.0.ffn_gate_inp.weight", {5, 32}, DType::BF16);
  olmoe.tensor("blk.1.ffn_up_exps.weight", {5, 24, 32}, DType::F16);
  olmoe.tensor("blk.1.ffn_gate_exps.weight", {5, 24, 32}, DType::MXFP4);
  olmoe.tensor("output_norm.weight", {32}, DType::BF16);
  llama.tensor("blk.0.ffn_up.weight", {64, 32}, DType::BF16);
  const auto experts = roles(olmoe), dense = roles(llama);
  const auto needs_of = [](const TinyCheckpoint& tiny) {
    const Checkpoint checkpoint = tiny.build();
    Weights weights;
    const Config config = read_config(checkpoint);
    return model_needs(config, bind_weights(checkpoint, config, weights));
  };
  CHECK(needs_of(olmoe).fine_formats == std::vector<DType>{DType::BF16, DType::MXFP4});
  CHECK(needs_of(olmoe).matrix_formats == std::vector<DType>{DType::F32, DType::F16});
  CHECK(needs_of(llama).fine_formats.empty());
  CHECK(experts.at("blk.0.ffn_up_exps.weight") == WeightRole::fine_matrix);
  CHECK(experts.at("blk.0.ffn_gate_inp.weight") == WeightRole::fine_matrix);
  CHECK(experts.at("blk.1.ffn_up_exps.weight") == WeightRole::matrix);
  CHECK(experts.at("blk.1.ffn_gate_exps.weight") == WeightRole::fine_matrix);
  CHECK(experts.at("output_norm.weight") == WeightRole::vector);
  CHECK(dense.at("blk.0.ffn_up.weight") == WeightRole::matrix);
}

TEST_CASE("checking finds a NaN or infinity wherever it is, and says where") {
  for (const auto& [name, index] :
       {std::pair("blk.1.ffn_norm.weight", 7), {"token_embd.weight", 40 * 32 - 1}, {"blk.0.attn_v.weight", 0}}) {
    for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      TinyCheckpoint tiny;
      tiny.values(name)[index] = bad;
      check_refused(tiny, name, "index " + std::to_string(index));
      CHECK_NOTHROW(load(tiny, false));
    }
  }
  // Of several, the first in binding order is named, whatever the threads do.
  for (int run = 0; run < 20; ++run) {
    TinyCheckpoint tiny;
    tiny.values("blk.1.ffn_down.weight")[3] = tiny.values("blk.0.attn_q.weight")[5] = std::nanf("");
    check_refused(tiny, "blk.0.attn_q.weight", "index 5");
  }
}

TEST_CASE("matrices that meet the same activations are packed next to one another") {
  const Checkpoint checkpoint = TinyCheckpoint().build();
  const auto backend = make_backend("cpu", {1, "scalar"});
  const Weights weights = load_weights(checkpoint, read_config(checkpoint), *backend, 3, false, nullptr);
  const auto follows = [&](const Tensor& first, const Tensor& second) {
    Tensor host = first;
    const auto end = first.as<char>() + backend->packed_bytes(host, WeightRole::matrix);
    return second.as<char>() >= end && second.as<char>() < end + 256;  // the alignment of every tensor
  };
  for (const LayerWeights& w : weights.layers) {
    CHECK(follows(w.wq, w.wk));
    CHECK(follows(w.wk, w.wv));
    CHECK(follows(w.w_gate, w.w_up));
  }
}

TEST_CASE("threads do not change what is loaded") {
  const TinyCheckpoint tiny("gemma3");
  const Weights one = load(tiny, false, 1), many = load(tiny, false, 7);
  REQUIRE(one.buffers.size() == 1);
  REQUIRE(many.buffers.size() == 1);
  CHECK(one.packed_bytes == many.packed_bytes);
  CHECK(std::memcmp(one.buffers[0].get(), many.buffers[0].get(), one.packed_bytes) == 0);
}

TEST_CASE("progress rises to one, and saying no cancels the load") {
  const Checkpoint checkpoint = TinyCheckpoint().build();
  const Config config = read_config(checkpoint);
  const auto backend = make_backend("ref");
  std::vector<double> seen;
  load_weights(checkpoint, config, *backend, 3, false, [&](double fraction) {
    seen.push_back(fraction);
    return true;
  });
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.front() == 0);
  CHECK(seen.back() == Approx(1));
  int calls = 0;
  const auto cancel = [&](double) { return ++calls < 2; };
  CHECK_THROWS_WITH(load_weights(checkpoint, config, *backend, 3, false, cancel), Catch::Contains("cancelled"));
}

TEST_CASE("parallel tasks all run once, and the first failure is the one reported") {
  for (int n_threads : {0, 1, 2, 5}) {
    std::vector<int> runs(50, 0);
    CHECK(run_parallel(
        std::vector<double>(50, 1), n_threads, [&](size_t i) { ++runs[i]; }, nullptr));
    CHECK(runs == std::vector<int>(50, 1));
    const auto fail = [](size_t i) {
      if (i % 10 == 3) throw Error(ErrorKind::run, "task " + std::to_string(i));
    };
    CHECK_THROWS_WITH(run_parallel(std::vector<double>(50, 1), n_threads, fail, nullptr), "task 3");
  }
  CHECK(run_parallel(
      {}, 4, [](size_t) {}, nullptr));
  const auto angry = [](double) -> bool { throw Error(ErrorKind::usage, "progress"); };
  CHECK_THROWS_WITH(run_parallel(
                        {1, 1}, 2, [](size_t) {}, angry),
                    "progress");
}
