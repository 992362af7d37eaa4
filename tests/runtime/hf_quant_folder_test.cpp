// Whole folders with quantised matrices: the model is the one whose weights lie there as plain numbers, and a folder
// with something changed is that model, another one that says so, or refused; never a crash.
#include <cstring>
#include <fstream>

#include "infer.h"
#include "runtime/gguf.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/hf_quant_writer.h"
#include "tests/runtime/hf_writer.h"
#include "tests/tiny_model.h"

using namespace infer;
using namespace infer::test;

namespace {

constexpr int64_t kGroupSize = 32;

HfFiles tiny_files() {
  const Folder folder;
  TinyModel model;
  model.dim = 64;
  model.n_heads = 2;
  model.n_kv_heads = 1;
  model.ffn_dim = 96;
  model.n_layers = 1;
  write_tiny_model(folder / "m.gguf", model);
  return hf_files(read_gguf(folder / "m.gguf"));
}

void append(HfFiles& files, const std::string& name, const char* type, const std::vector<int64_t>& dims,
            const std::string& bytes) {
  files.header[name] = {
      {"dtype", type}, {"shape", dims}, {"data_offsets", {files.data.size(), files.data.size() + bytes.size()}}};
  files.data += bytes;
}

struct Both {
  HfFiles plain, quantised;  ///< the same model
};

/// Every projection becomes a matrix of random codes, packed by `pack` and as floats.
Both both_forms(const nlohmann::ordered_json& config, const std::function<QuantFolder(const Matrix&)>& pack) {
  const HfFiles original = tiny_files();
  Both both = {original, original};
  for (HfFiles* files : {&both.plain, &both.quantised}) files->header = {}, files->data.clear();
  for (const auto& [name, entry] : original.header.items()) {
    if (name == "__metadata__") continue;
    const std::vector<int64_t> dims = entry["shape"];
    if (!name.ends_with("_proj.weight")) {
      const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      for (HfFiles* files : {&both.plain, &both.quantised})
        append(*files, name, "F32", dims, original.data.substr(begin, end - begin));
      continue;
    }
    const Matrix matrix(dims[0], dims[1], kGroupSize, 4, false);
    append(both.plain, name, "F32", dims, bytes_of(matrix.weights()));
    const std::string module = name.substr(0, name.size() - std::strlen(".weight"));
    for (const HostTensor& part : pack(matrix).checkpoint.tensors)
      append(both.quantised, module + part.name.substr(1), part.dtype == DType::I32 ? "I32" : "F16", part.dims,
             {reinterpret_cast<const char*>(part.data), part.bytes});
  }
  both.quantised.config["quantization_config"] = config;
  return both;
}

Both awq_forms() {
  return both_forms({{"quant_method", "awq"}, {"bits", 4}, {"group_size", kGroupSize}, {"version", "gemm"}},
                    awq_folder);
}
Both gptq_forms() {
  return both_forms({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", kGroupSize}, {"sym", false}},
                    [](const Matrix& m) { return gptq_folder(m, false); });
}

Model load(const std::string& path, const std::string& device) {
  LoadOptions options;
  options.device = device;
  return Model::load(path, options);
}

std::vector<TokenId> greedy(const Model& model) {
  EngineOptions options;
  options.n_ctx = 64;
  options.n_threads = 1;
  Engine engine(model, options);
  Request request;
  request.prompt = "the cat";
  request.max_tokens = 24;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  std::vector<TokenId> ids;
  engine.generate(request, [&](const Token& token) { return ids.push_back(token.id), true; });
  return ids;
}

}  // namespace

TEST_CASE("a folder quantised by AWQ or GPTQ is the model of its weights as numbers") {
  for (const Both& both : {awq_forms(), gptq_forms()}) {
    const Folder plain, quantised;
    both.plain.write(plain / "");
    both.quantised.write(quantised / "");
    const Model model = load(quantised / "", "ref");
    CHECK(model.info().warnings.empty());
    CHECK(model.info().n_params == load(plain / "", "ref").info().n_params);
    CHECK(greedy(model) == greedy(load(plain / "", "ref")));
    CHECK(greedy(load(quantised / "", "cpu")).size() == 24);  // copies behind packed weights are gone by now
  }
}

TEST_CASE("a quantised folder becomes a GGUF file of plain numbers, and of fewer bits with permission") {
  for (const Both& both : {awq_forms(), gptq_forms()}) {
    const Folder plain, quantised, out;
    both.plain.write(plain / "");
    both.quantised.write(quantised / "");
    QuantizeOptions options;
    options.type = "F32";
    double last = 0;
    options.progress = [&](double share) {
      CHECK(share >= last);
      last = share;
      return true;
    };
    quantize(plain / "", out / "plain.gguf", options);
    last = 0;
    quantize(quantised / "", out / "unpacked.gguf", options);
    CHECK(last > 0.9);
    options.progress = nullptr;
    const Checkpoint want = read_gguf(out / "plain.gguf"), got = read_gguf(out / "unpacked.gguf");
    REQUIRE(got.tensors.size() == want.tensors.size());
    for (const HostTensor& tensor : want.tensors) {
      INFO(tensor.name);
      const HostTensor* mine = got.find_tensor(tensor.name);
      REQUIRE((mine && mine->dims == tensor.dims && mine->dtype == DType::F32));
      CHECK(std::memcmp(mine->data, tensor.data, tensor.bytes) == 0);
    }
    options.type = "Q8_0";
    CHECK_THROWS_WITH(quantize(quantised / "", out / "q8.gguf", options), Catch::Contains("--allow-requantize"));
    CHECK_FALSE(std::filesystem::exists(out / "q8.gguf"));
    options.allow_requantize = true;
    quantize(quantised / "", out / "q8.gguf", options);
    CHECK(greedy(load(out / "q8.gguf", "cpu")).size() == 24);
  }
}

TEST_CASE("unpacking tells how far it is and can be cancelled") {
  const Folder folder;
  awq_forms().quantised.write(folder / "");
  LoadOptions options;
  options.device = "cpu";
  int calls = 0;
  options.progress = [&](double share) { return ++calls, share >= 0 && share <= 1; };
  Model::load(folder / "", options);
  CHECK(calls > 0);
  options.progress = [](double) { return false; };
  CHECK_THROWS_WITH(Model::load(folder / "", options), Catch::Contains("cancelled"));
}

TEST_CASE("quantize_config.json beside config.json must agree with it") {
  const Folder folder;
  gptq_forms().quantised.write(folder / "");
  std::ofstream(folder / "quantize_config.json") << R"({"bits": 4, "group_size": 32, "sym": false})";
  CHECK(load(folder / "", "ref").info().n_params > 0);
  std::ofstream(folder / "quantize_config.json") << R"({"bits": 4, "group_size": 64, "sym": false})";
  CHECK_THROWS_WITH(load(folder / "", "ref"), Catch::Contains("quantize_config.json") && Catch::Contains("otherwise"));
  std::ofstream(folder / "quantize_config.json") << "{";
  CHECK_THROWS_WITH(load(folder / "", "ref"), Catch::Contains("quantize_config.json"));
}

TEST_CASE("a quantised folder with any one bit changed is read or refused, never worse") {
  uint32_t random = 1;
  const auto next = [&] { return random = random * 1664525u + 1013904223u, random >> 8; };
  for (const Both& both : {awq_forms(), gptq_forms()}) {
    const Folder folder;
    const std::pair<const char*, std::string> kinds[] = {{"model.safetensors", both.quantised.safetensors()},
                                                         {"config.json", both.quantised.config.dump()}};
    int refused = 0;
    for (const auto& [name, bytes] : kinds) {
      both.quantised.write(folder / "");
      for (int i = 0; i < 200; ++i) {
        std::string changed = bytes;
        char& byte = changed[next() % std::min<size_t>(changed.size(), 6000)];
        byte = static_cast<char>(byte ^ 1u << next() % 8);
        std::ofstream(folder / name, std::ios::binary | std::ios::trunc) << changed;
        try {
          load(folder / "", i % 2 ? "ref" : "cpu");
        } catch (const Error& e) {
          ++refused;
          CHECK(std::string(e.what()).find('\n') == std::string::npos);
        }
      }
    }
    CHECK(refused > 100);
  }
}
