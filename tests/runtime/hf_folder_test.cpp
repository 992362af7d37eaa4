// Folders as a whole: the same model from a GGUF file and from a folder is the same model, in one file or in shards;
// and what a folder says about sampling, templates and ends of answers is used.
#include "runtime/hf_folder.h"

#include <filesystem>
#include <fstream>

#include "quant/formats.h"
#include "runtime/gguf.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/hf_writer.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::Folder;
using test::HfFiles;
namespace fs = std::filesystem;

namespace {

/// A tiny model as a GGUF file and as the parts of a folder.
struct TwoForms {
  Folder folder;
  HfFiles files;

  explicit TwoForms(DType weights = DType::F32) {
    test::TinyModel model;
    model.weights = weights;
    test::write_tiny_model(folder / "model.gguf", model);
    files = test::hf_files(read_gguf(folder / "model.gguf"));
    fs::create_directory(folder / "hf");
    write();
  }
  void write() const { files.write(hf()); }
  void add(const std::string& name, const std::string& text) const { std::ofstream(hf() + "/" + name) << text; }
  std::string hf() const { return folder / "hf"; }
  std::string gguf() const { return folder / "model.gguf"; }
};

Model load_on(const std::string& path, const std::string& device = "ref") {
  LoadOptions options;
  options.device = device;
  return Model::load(path, options);
}

std::vector<TokenId> greedy(const Model& model, const std::string& prompt) {
  EngineOptions options;
  options.n_ctx = 128;
  options.n_threads = 1;
  Engine engine(model, options);
  Request request;
  request.prompt = prompt;
  request.max_tokens = 16;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  std::vector<TokenId> ids;
  engine.generate(request, [&](const Token& token) { return ids.push_back(token.id), true; });
  return ids;
}

std::string refusal(const std::string& path) {
  try {
    load_on(path);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::bad_file);
    return e.what();
  }
  return {};
}

/// The folder's tensors in two shards with an index.
void write_shards(const TwoForms& both, const std::string& second = "model-00002-of-00002.safetensors") {
  fs::remove(both.hf() + "/model.safetensors");
  nlohmann::ordered_json headers[2], index;
  std::string data[2];
  size_t n = 0;
  for (const auto& [name, entry] : both.files.header.items()) {
    if (name == "__metadata__") continue;
    const size_t shard = n++ % 2, begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    headers[shard][name] = entry;
    headers[shard][name]["data_offsets"] = {data[shard].size(), data[shard].size() + end - begin};
    data[shard] += both.files.data.substr(begin, end - begin);
    index["weight_map"][name] = shard == 0 ? "model-00001-of-00002.safetensors" : second;
  }
  both.add("model-00001-of-00002.safetensors", test::safetensors_bytes(headers[0].dump(), data[0]));
  both.add("model-00002-of-00002.safetensors", test::safetensors_bytes(headers[1].dump(), data[1]));
  both.add("model.safetensors.index.json", index.dump());
}

}  // namespace

TEST_CASE("a folder and a GGUF file of the same model give the same ids and the same tokens") {
  for (const DType weights : {DType::F32, DType::F16, DType::BF16}) {
    const TwoForms both(weights);
    const Model gguf = load_on(both.gguf()), hf = load_on(both.hf());
    CHECK(hf.info().format == "Hugging Face folder");
    CHECK(hf.info().n_params == gguf.info().n_params);
    for (const std::string text : {"the cat sat", "Hello, world!", "<|im_start|>user\nhi<|im_end|>", "\xE4\xB8\xAD"}) {
      CHECK(hf.tokenize(text) == gguf.tokenize(text));
      CHECK(hf.tokenize(text, false, false) == gguf.tokenize(text, false, false));
      CHECK(hf.detokenize(hf.tokenize(text)) == text);
    }
    CHECK(greedy(hf, "the cat") == greedy(gguf, "the cat"));
    CHECK(hf.chat_template() == gguf.chat_template());
    for (TokenId id = 0; id < gguf.vocab(); ++id) CHECK(hf.is_end_of_generation(id) == gguf.is_end_of_generation(id));
  }
}

TEST_CASE("a folder quantised while loading is the GGUF file quantised while loading") {
  const TwoForms both;
  LoadOptions options;
  options.device = "cpu";
  options.quant = "Q8_0";
  CHECK(greedy(Model::load(both.hf(), options), "the dog") == greedy(Model::load(both.gguf(), options), "the dog"));
}

TEST_CASE("shards are one model, and an index may not lead out of the folder or lie about it") {
  TwoForms both;
  write_shards(both);
  CHECK(greedy(load_on(both.hf()), "the cat") == greedy(load_on(both.gguf()), "the cat"));

  for (const char* name : {"../model-00002-of-00002.safetensors", "/etc/passwd", "x/y.safetensors", "a\\b.safetensors",
                           "..safetensors", "model.bin", "", ".safetensors"}) {
    INFO(name);
    write_shards(both, name);
    CHECK_THAT(refusal(both.hf()), Catch::Contains("not the name of a file in this folder"));
  }
  write_shards(both, "model-00001-of-00002.safetensors");
  CHECK_THAT(refusal(both.hf()), Catch::Contains("a tensor of the index is missing"));
  write_shards(both, "missing.safetensors");
  CHECK_THROWS_AS(load_on(both.hf()), Error);
  write_shards(both);
  fs::copy_file(both.hf() + "/model-00001-of-00002.safetensors", both.hf() + "/model-00002-of-00002.safetensors",
                fs::copy_options::overwrite_existing);
  CHECK_THAT(refusal(both.hf()), Catch::Contains("does not place this tensor here"));
}

TEST_CASE("the author's sampling defaults and ends of answers are those of generation_config.json") {
  TwoForms both;
  CHECK(load_on(both.hf()).info().author_sampling.empty());
  CHECK_FALSE(load_on(both.hf()).is_end_of_generation(5));
  both.add("generation_config.json", R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20,
    "repetition_penalty": 1.05, "eos_token_id": [5, 7], "transformers_version": "4.50.0"})");
  const Model model = load_on(both.hf());
  using Defaults = std::vector<std::pair<std::string, double>>;
  CHECK(model.info().author_sampling ==
        Defaults{{"penalty_repeat", 1.05}, {"temp", 0.6}, {"top_k", 20}, {"top_p", 0.9}});
  CHECK(model.is_end_of_generation(5));
  CHECK(model.is_end_of_generation(7));
  CHECK_FALSE(model.is_end_of_generation(6));
  both.add("generation_config.json", R"({"do_sample": false, "temperature": 0.6})");
  CHECK(load_on(both.hf()).info().author_sampling == Defaults{{"temp", 0}});
  both.add("generation_config.json", R"({"temperature": "hot"})");
  CHECK_THAT(refusal(both.hf()), Catch::Contains("temperature"));
}

TEST_CASE("a head that is the embedding need not be in the file, and one that is not must be") {
  TwoForms both;
  const auto header = both.files.header;
  const size_t begin = header["lm_head.weight"]["data_offsets"][0], end = header["lm_head.weight"]["data_offsets"][1];
  REQUIRE(end == both.files.data.size());
  both.files.header.erase("lm_head.weight");
  both.files.data.resize(begin);
  both.write();
  CHECK_THAT(refusal(both.hf()), Catch::Contains("lm_head.weight"));
  both.files.config["tie_word_embeddings"] = true;
  both.write();
  CHECK(greedy(load_on(both.hf()), "the").size() == 16);
}

TEST_CASE("norms that mean one more get their one in a copy that loading does not let go of") {
  TwoForms both;
  both.files.config["model_type"] = "gemma2";
  both.files.config["architectures"] = {"Gemma2ForCausalLM"};
  both.write();
  LoadOptions options;
  const Checkpoint plain = read_gguf(both.gguf()), gemma = read_hf_folder(both.hf(), options);
  CHECK(gemma.mapped);
  const HostTensor& before = *plain.find_tensor("output_norm.weight");
  const HostTensor& after = *gemma.find_tensor("output_norm.weight");
  CHECK(after.owned);
  CHECK_FALSE(gemma.find_tensor("blk.0.attn_v.weight")->owned);
  for (int64_t i = 0; i < before.n_elements(); ++i)
    CHECK(reinterpret_cast<const float*>(after.data)[i] == reinterpret_cast<const float*>(before.data)[i] + 1);
}

TEST_CASE("a folder without weights or config is told what it lacks") {
  TwoForms both;
  fs::remove(both.hf() + "/model.safetensors");
  both.add("pytorch_model.bin", "x");
  CHECK_THAT(refusal(both.hf()), Catch::Contains("pytorch_model.bin") && Catch::Contains("model.safetensors"));
  fs::remove(both.hf() + "/config.json");
  CHECK_THAT(refusal(both.hf()), Catch::Contains("config.json"));
}

TEST_CASE("overrides reach a folder's metadata") {
  const TwoForms both;
  LoadOptions options;
  options.device = "ref";
  options.overrides = {{"llama.context_length", "int", "99"}};
  CHECK(Model::load(both.hf(), options).info().context_length == 99);
}
