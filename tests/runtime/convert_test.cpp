// Folders written as GGUF files: for every model type the file computes what the folder computes and encodes what it
// encodes, holds the keys and names that llama.cpp's converter writes, and what cannot be said in a GGUF file is
// refused or told.
#include "runtime/convert.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "quant/formats.h"
#include "runtime/gguf.h"
#include "runtime/hf_folder.h"
#include "runtime/tokenizer.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/hf_families.h"
#include "tests/tiny_model.h"

using namespace infer;
using nlohmann::ordered_json;
using test::Folder;
using test::HfFiles;
namespace fs = std::filesystem;

namespace {

/// A folder and the file made of it.
struct Pair {
  Folder folder;
  QuantizeReport report;

  explicit Pair(const HfFiles& files, const std::string& type = "F32", QuantizeOptions options = {}) {
    fs::create_directory(hf());
    files.write(hf());
    options.type = type;
    report = quantize(hf(), gguf(), options);
  }
  std::string hf() const { return folder / "Some-Model-1B"; }
  std::string gguf() const { return folder / "out.gguf"; }
  bool notes(const std::string& text) const {
    for (const std::string& note : report.notes)
      if (note.find(text) != std::string::npos) return true;
    return false;
  }
};

struct Answer {
  std::vector<TokenId> ids;
  std::vector<float> logprobs;
};

/// Longer than the windows and the original contexts of these models.
Answer answer(const std::string& path) {
  LoadOptions load;
  load.device = "ref";
  EngineOptions options;
  options.n_ctx = 64;
  options.n_threads = 1;
  Engine engine(Model::load(path, load), options);
  Request request;
  request.prompt = "the cat sat on the mat";
  request.max_tokens = 24;
  request.n_top_logprobs = 8;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  Answer out;
  engine.generate(request, [&](const Token& token) {
    out.ids.push_back(token.id);
    for (const auto& [id, logprob] : token.top_logprobs) out.logprobs.push_back(logprob);
    return true;
  });
  return out;
}

void check_same(const std::string& hf, const std::string& gguf) {
  const Answer want = answer(hf), got = answer(gguf);
  REQUIRE(want.ids.size() == 24);
  CHECK(got.ids == want.ids);
  REQUIRE(got.logprobs.size() == want.logprobs.size());
  for (size_t i = 0; i < want.logprobs.size(); ++i) CHECK(std::fabs(got.logprobs[i] - want.logprobs[i]) < 2e-4f);
}

std::string refusal(const std::function<void()>& run, ErrorKind kind = ErrorKind::bad_file) {
  try {
    run();
  } catch (const Error& e) {
    CHECK(e.kind() == kind);
    return e.what();
  }
  return {};
}

const std::string kTokenizers = std::string(TEST_DATA) + "/tokenizers/hf/";

Vocabulary vocabulary_of(const std::string& name) {
  const Folder folder;
  const bool is_json = fs::exists(kTokenizers + name + ".json");
  fs::copy_file(kTokenizers + name + (is_json ? ".json" : ".model"),
                folder / (is_json ? "tokenizer.json" : "tokenizer.model"));
  return *read_hf_vocabulary(folder / "");
}

/// Through the keys of a file and back.
Tokenizer converted(const Vocabulary& vocabulary, std::vector<std::string>& notes) {
  Checkpoint file;
  put_vocabulary(convert_vocabulary(vocabulary, vocabulary.size() + 3, notes), file);
  return Tokenizer(*vocabulary_from(file));
}

}  // namespace

TEST_CASE("the file of a folder computes and encodes what the folder does, for every model type") {
  for (const std::string& type : test::hf_model_types()) {
    INFO(type);
    const Pair pair(test::hf_family(type));
    check_same(pair.hf(), pair.gguf());
    LoadOptions load;
    load.device = "ref";
    const Model hf = Model::load(pair.hf(), load), gguf = Model::load(pair.gguf(), load);
    for (const std::string text :
         {"the cat sat", "Hello, world!", "<|im_start|>user\nhi<|im_end|>", "\xE4\xB8\xAD 12"}) {
      CHECK(hf.tokenize(text) == gguf.tokenize(text));
      CHECK(hf.tokenize(text, false, false) == gguf.tokenize(text, false, false));
    }
    CHECK(hf.chat_template() == gguf.chat_template());
    CHECK(gguf.info().name == "Some-Model-1B");
    for (TokenId id = 0; id < hf.vocab(); ++id) CHECK(hf.is_end_of_generation(id) == gguf.is_end_of_generation(id));
  }
}

TEST_CASE("text is brought into its normal form where the folder wants it, and others are told") {
  HfFiles files = test::hf_family("qwen2");
  files.tokenizer["normalizer"] = {{"type", "NFC"}};
  const Pair pair(files);
  LoadOptions load;
  load.vocab_only = true;
  const Model hf = Model::load(pair.hf(), load), gguf = Model::load(pair.gguf(), load);
  for (const std::string text : {"e\xCC\x81t e\xCC\x81", "\xC3\xA9t", "a\xCC\x8A<|im_end|>e\xCC\x81", "x\xFFy"})
    for (const bool special : {false, true})
      CHECK(hf.tokenize(text, true, special) == gguf.tokenize(text, true, special));
  CHECK(gguf.tokenize("e\xCC\x81") == gguf.tokenize("\xC3\xA9"));
  CHECK(pair.notes("NFC"));
  CHECK_FALSE(Pair(test::hf_family("qwen2")).notes("NFC"));
}

TEST_CASE("an ordinary word that other models end with stays one, and a token of that form becomes a control token") {
  HfFiles files = test::hf_family("qwen2", ordered_json::object(), 2);
  const size_t n = files.config["vocab_size"].get<size_t>() - 2;
  files.tokenizer["added_tokens"].push_back({{"id", n}, {"content", "<|tool|>"}, {"special", false}});
  files.tokenizer["model"]["vocab"]["</s>"] = n + 1;
  const Pair pair(files);
  const Tokenizer tokenizer(*vocabulary_from(read_gguf(pair.gguf())));
  CHECK(tokenizer.type(static_cast<int32_t>(n)) == TokenType::control);
  CHECK(tokenizer.type(static_cast<int32_t>(n) + 1) == TokenType::normal);
  CHECK_FALSE(tokenizer.is_eog(static_cast<int32_t>(n) + 1));
  const Tokenizer folder(*read_hf_vocabulary(pair.hf()));
  for (const std::string text : {"a</s>b", "<|tool|>x", "</s>"}) CHECK(tokenizer.encode(text) == folder.encode(text));
}

TEST_CASE("every scaling of the rope is in the file") {
  const ordered_json factors = {1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0};
  const std::pair<const char*, ordered_json> scalings[] = {
      {"llama",
       {{"rope_type", "llama3"},
        {"factor", 8.0},
        {"low_freq_factor", 1.0},
        {"high_freq_factor", 4.0},
        {"original_max_position_embeddings", 16}}},
      {"llama", {{"type", "linear"}, {"factor", 4.0}}},
      {"qwen2", {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}}},
      {"qwen3",
       {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}, {"attention_factor", 1.3}}},
      {"gpt_oss",
       {{"rope_type", "yarn"}, {"factor", 8.0}, {"original_max_position_embeddings", 16}, {"truncate", false}}},
      {"llama", {{"rope_type", "dynamic"}, {"factor", 2.0}, {"original_max_position_embeddings", 16}}},
      {"phi3", {{"type", "longrope"}, {"short_factor", factors}, {"long_factor", factors}}},
  };
  for (const auto& [type, scaling] : scalings) {
    INFO(type << " " << scaling.dump());
    ordered_json config = {{"rope_scaling", scaling}};
    if (std::string(type) == "phi3") config["original_max_position_embeddings"] = 16;
    const Pair pair(test::hf_family(type, config));
    check_same(pair.hf(), pair.gguf());
    const Checkpoint file = read_gguf(pair.gguf());
    const std::string kind = scaling.value("rope_type", scaling.value("type", ""));
    const std::string key = file.get_string("general.architecture") + ".rope.scaling.type";
    // Tensors say two of them, and the name of a third is one that only this program knows.
    CHECK(file.has(key) == (kind == "linear" || kind == "yarn"));
    CHECK((file.find_tensor("rope_freqs.weight") != nullptr) == (kind == "llama3"));
    CHECK((file.find_tensor("rope_factors_long.weight") != nullptr) == (kind == "longrope"));
    CHECK(pair.notes("\"dynamic\"") == (kind == "dynamic"));
  }
}

TEST_CASE("a file that became a folder becomes that file again") {
  for (const DType weights : {DType::F32, DType::F16, DType::BF16}) {
    const Folder folder;
    test::TinyModel model;
    model.weights = weights;
    test::write_tiny_model(folder / "first.gguf", model);
    const Checkpoint first = read_gguf(folder / "first.gguf");
    const Pair pair(test::hf_files(first), find_format(weights)->name);
    const Checkpoint again = read_gguf(pair.gguf());
    REQUIRE(again.tensors.size() == first.tensors.size());
    for (const HostTensor& want : first.tensors) {
      INFO(want.name);
      const HostTensor* got = again.find_tensor(want.name);
      REQUIRE(got != nullptr);
      CHECK(got->dims == want.dims);
      CHECK(got->dtype == want.dtype);
      REQUIRE(got->bytes == want.bytes);
      CHECK(std::equal(got->data, got->data + got->bytes, want.data));
    }
    for (const char* key : {"tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "model", "pre"}) {
      INFO(key);
      CHECK(again.metadata.at(std::string("tokenizer.ggml.") + key).data ==
            first.metadata.at(std::string("tokenizer.ggml.") + key).data);
      CHECK(again.metadata.at(std::string("tokenizer.ggml.") + key).type ==
            first.metadata.at(std::string("tokenizer.ggml.") + key).type);
    }
  }
}

TEST_CASE("names, widths and shapes are those of llama.cpp's converter") {
  const Pair pair(test::hf_family("qwen2_moe", ordered_json::object(), 7), "F16");
  const Checkpoint file = read_gguf(pair.gguf());
  const auto type = [&](const char* key) { return file.metadata.at(key).type; };
  CHECK(type("qwen2moe.block_count") == "u32");
  CHECK(type("qwen2moe.attention.layer_norm_rms_epsilon") == "f32");
  CHECK(file.get_string("general.type") == "model");
  CHECK(file.get_string("general.size_label").starts_with("5x"));
  CHECK(file.get_int("general.file_type", 0, 100) == 1);
  CHECK(file.get_int("general.quantization_version", 0, 100) == 2);
  CHECK(file.find_tensor("blk.0.ffn_gate_exps.weight")->dims == std::vector<int64_t>{5, 32, 64});
  CHECK(file.find_tensor("blk.0.ffn_gate_exps.weight")->dtype == DType::F16);
  for (const char* name : {"blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_inp_shexp.weight", "blk.0.attn_q.bias",
                           "blk.0.attn_norm.weight", "output_norm.weight"})
    CHECK(file.find_tensor(name)->dtype == DType::F32);
  const auto& tokens = *file.find_strings("tokenizer.ggml.tokens");
  CHECK(static_cast<int64_t>(tokens.size()) == file.find_tensor("token_embd.weight")->dims[0]);
  CHECK(tokens.back() == "[PAD" + std::to_string(tokens.size() - 1) + "]");

  // Tied heads have no tensor, and a window on the layers that the architecture implies has no key.
  const Pair gemma(test::hf_family("gemma3_text", {{"sliding_window_pattern", 6}, {"num_hidden_layers", 5}}));
  const Checkpoint gemma_file = read_gguf(gemma.gguf());
  CHECK(gemma_file.find_tensor("output.weight") == nullptr);
  CHECK(gemma_file.has("gemma3.attention.sliding_window"));
  CHECK_FALSE(gemma_file.has("gemma3.attention.sliding_window_pattern"));
  const Pair other(test::hf_family("gemma3_text"));
  CHECK(read_gguf(other.gguf()).get_int("gemma3.attention.sliding_window_pattern", 0, 100) == 3);
}

TEST_CASE("experts that were trained in MXFP4 stay what they are, unless the user says otherwise") {
  for (const char* type : {"F16", "Q8_0"}) {
    const Pair kept(test::hf_family("gpt_oss"), type);
    const Checkpoint file = read_gguf(kept.gguf());
    CHECK(file.find_tensor("blk.0.ffn_down_exps.weight")->dtype == DType::MXFP4);
    CHECK(kept.notes("15 stacks of experts stay in MXFP4"));
    CHECK(file.find_tensor("blk.0.attn_q.weight")->dtype == find_format(type)->id);
    CHECK(file.get_int("general.file_type", 0, 100) == (std::string(type) == "F16" ? 38 : 7));
  }
  QuantizeOptions options;
  options.allow_requantize = true;
  const Pair changed(test::hf_family("gpt_oss"), "F32", options);
  CHECK(read_gguf(changed.gguf()).find_tensor("blk.0.ffn_down_exps.weight")->dtype == DType::F32);
  check_same(changed.hf(), changed.gguf());
}

TEST_CASE("quantising a folder is quantising the file that was made of it") {
  const HfFiles files = test::hf_family("llama");
  for (const char* type : {"Q8_0", "Q4_K_M"}) {
    const Pair at_once(files, type), first(files);
    QuantizeOptions options;
    options.type = type;
    quantize(first.gguf(), first.folder / "second.gguf", options);
    CHECK(test::bytes_of(at_once.gguf()) == test::bytes_of(first.folder / "second.gguf"));
  }
}

TEST_CASE("a file of the folder is not written over, and a dry run writes nothing") {
  const Pair pair(test::hf_family("llama"));
  QuantizeOptions options;
  options.type = "F16";
  const auto again = [&](const std::string& out) { quantize(pair.hf(), out, options); };
  const std::string weights = pair.hf() + "/model.safetensors", before = test::bytes_of(weights);
  for (const std::string& out : {pair.hf(), weights, pair.hf() + "/config.json"})
    CHECK_THAT(refusal([&] { again(out); }, ErrorKind::usage), Catch::Contains("is the model itself"));
  CHECK(test::bytes_of(weights) == before);
  again(pair.hf() + "/f16.gguf");
  again(pair.hf() + "/f16.gguf");
  options.dry_run = true;
  again(pair.hf() + "/dry.gguf");
  CHECK_FALSE(fs::exists(pair.hf() + "/dry.gguf"));
}

TEST_CASE("a folder with any one byte changed becomes a file or is refused, and leaves nothing behind") {
  uint32_t random = 1;
  const auto next = [&] { return random = random * 1664525u + 1013904223u, random >> 8; };
  for (const char* type : {"llama", "phi3", "gpt_oss"}) {
    const Folder folder;
    const HfFiles files = test::hf_family(type);
    QuantizeOptions options;
    options.type = "Q8_0";
    int refused = 0;
    for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
      files.write(folder / "");
      const std::string bytes = test::bytes_of(folder / name);
      for (int i = 0; i < 60; ++i) {
        std::string changed = bytes;
        changed[next() % std::min<size_t>(changed.size(), 6000)] ^= static_cast<char>(1 << next() % 7);
        std::ofstream(folder / name, std::ios::binary) << changed;
        try {
          quantize(folder / "", folder / "out.gguf", options);
          CHECK(read_gguf(folder / "out.gguf").tensors.size() > 20);
          fs::remove(folder / "out.gguf");
        } catch (const Error& e) {
          ++refused;
          CHECK(e.kind() == ErrorKind::bad_file);
        }
        CHECK(folder.n_files() == 4);
      }
    }
    CHECK(refused > 60);
  }
}

TEST_CASE("tokenizers of every kind that GGUF files have give the same ids there") {
  for (const std::string name : {"llama2_form", "gemma_form", "metaspace_first", "spm_bpe", "spm_unigram_unk"}) {
    const Vocabulary vocabulary = vocabulary_of(name);
    std::vector<std::string> notes;
    const Tokenizer tokenizer = converted(vocabulary, notes);
    CHECK(tokenizer.text_of(vocabulary.size()) == "[PAD" + std::to_string(vocabulary.size()) + "]");
    CHECK(tokenizer.type(vocabulary.size()) == TokenType::unused);
    const bool told = name == "metaspace_first";  // which spaces differ
    CHECK(notes.size() == (told ? 2 : 0));
    std::ifstream lines(kTokenizers + name + ".jsonl");
    int n = 0;
    for (std::string line; std::getline(lines, line);) {
      const auto row = nlohmann::json::parse(line);
      const auto text = row["text"].get<std::string>();
      if (told && (text.starts_with(' ') || text.starts_with("\xE2\x96\x81") || text.find('<') != text.npos)) continue;
      CAPTURE(name, text);
      ++n;
      CHECK(tokenizer.encode(text, false) == row["plain"].get<std::vector<int32_t>>());
      if (row.contains("ids")) CHECK(tokenizer.encode(text, true) == row["ids"].get<std::vector<int32_t>>());
    }
    CHECK(n > 8);
  }
}

TEST_CASE("text rules that GGUF files cannot say are refused by name") {
  std::vector<std::string> notes;
  const auto says = [&](const Vocabulary& v) { return refusal([&] { converted(v, notes); }); };
  CHECK_THAT(says(vocabulary_of("prefix_space")), Catch::Contains("a space in front of the text"));
  CHECK_THAT(says(vocabulary_of("folded")), Catch::Contains("normalizer"));
  CHECK_THAT(says(vocabulary_of("byte_level")), Catch::Contains("normalizer"));
  CHECK_THAT(says(vocabulary_of("unigram")), Catch::Contains("normalizer"));
  CHECK_THAT(says(vocabulary_of("spm_unigram")), Catch::Contains("byte_fallback"));

  Vocabulary good = vocabulary_of("byte_level");
  good.rules->normalizer.clear();
  CHECK_THAT(says(good), Catch::Contains("no name that GGUF files have means these cuts"));
  good.rules->cuts = pretokenizer_spec("gpt-2", "").rules;
  CHECK(says(good).empty());
  good.rules->before = {0, 1};
  CHECK_THAT(says(good), Catch::Contains("nothing but one BOS"));
}

TEST_CASE("a tokenizer that a GGUF file would read otherwise is found out by what it encodes") {
  std::vector<std::string> notes;
  Vocabulary v = vocabulary_of("llama2_form");
  CHECK(refusal([&] { converted(v, notes); }).empty());
  // Merges that are missing: to GGUF files every token can be made from any two.
  v.merges.erase(v.merges.begin() + static_cast<std::ptrdiff_t>(v.merges.size() / 2), v.merges.end());
  CHECK_THAT(refusal([&] { converted(v, notes); }), Catch::Contains("is encoded differently"));
}

TEST_CASE("cuts of tokenizer.json files get the names that llama.cpp has for them") {
  const auto name = [](std::vector<CutRule> cuts, bool ignore_merges = false) {
    TextRules rules;
    rules.cuts = std::move(cuts);
    rules.ignore_merges = ignore_merges;
    return pretokenizer_name(rules, "x");
  };
  const std::string endings = "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
                    rest = R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string word = R"([^\r\n\p{L}\p{N}]?\p{L}+|)";
  const std::string llama3 = endings + "|" + word + R"(\p{N}{1,3}|)" + rest;
  CHECK(name({{llama3}}, true) == "llama-bpe");
  CHECK(name({{llama3}}) == "dbrx");
  CHECK(name({{llama3, Cut::removed, true}}) == "dbrx");
  CHECK(name({{endings + "|" + word + R"(\p{N}|)" + rest}}) == "qwen2");
  CHECK(name({{R"(\p{N})"}, pretokenizer_spec("gpt-2", "").rules[0]}) == "smollm");
  const std::string upper = R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])", lower = R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])";
  const std::string lead = R"([^\r\n\p{L}\p{N}]?)", tail = R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const auto cased = [&](const std::string& ends, const std::string& numbers) {
    return lead + upper + "*" + lower + "+" + ends + "|" + lead + upper + "+" + lower + "*" + ends + "|" + numbers +
           "|" + tail;
  };
  CHECK(name({{cased(endings + "?", R"(\p{N}{1,3})")}}) == "gpt-4o");
  CHECK(name({{cased("", R"(\p{N})")}}, true) == "tekken");
  CHECK_THAT(refusal([&] { name({{llama3, Cut::removed}}); }), Catch::Contains("these cuts"));
  CHECK_THAT(refusal([&] { name({}); }), Catch::Contains("found none"));
}
