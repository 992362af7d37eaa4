// Folders with something wrong in them: headers, configs and tokenizers, changed in every way that came to mind and in
// many that did not. Always an Error that names the file, never a crash, and never a model that is silently another
// one.
#include <cstring>
#include <filesystem>
#include <fstream>

#include "runtime/gguf.h"
#include "runtime/safetensors.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/hf_writer.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::Folder;
using test::HfFiles;
using OrderedJson = nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

HfFiles good_files() {
  const Folder folder;
  test::TinyModel model;
  model.dim = 32;
  model.n_heads = 2;
  model.n_kv_heads = 1;
  model.ffn_dim = 32;
  model.n_layers = 1;
  test::write_tiny_model(folder / "m.gguf", model);
  return test::hf_files(read_gguf(folder / "m.gguf"));
}

struct Outcome {
  bool refused = false;
  std::string message;
};

Outcome open(const std::string& folder, bool map = true) {
  LoadOptions options;
  options.device = "ref";
  options.mmap = map;
  try {
    Model::load(folder, options);
    return {};
  } catch (const Error& e) {
    CHECK((e.kind() == ErrorKind::bad_file || e.kind() == ErrorKind::run));
    return {true, e.what()};
  }
}

bool is_one_clean_line(const std::string& text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 32 || c == 127) return false;
  return text.size() < 2000;
}

void check_refused(const std::string& what, const std::string& folder) {
  INFO(what);
  const Outcome outcome = open(folder);
  CHECK(outcome.refused);
  INFO(outcome.message);
  CHECK_THAT(outcome.message, Catch::Contains(folder));
  CHECK(is_one_clean_line(outcome.message));
}

struct Spoiled {
  const char* pointer;  ///< into a JSON file
  OrderedJson value;    ///< what stands there instead; discarded: nothing does
};

const OrderedJson kGone = OrderedJson(OrderedJson::value_t::discarded);

void spoil(OrderedJson& file, const Spoiled& one) {
  const OrderedJson::json_pointer pointer(one.pointer);
  if (!one.value.is_discarded()) {
    file[pointer] = one.value;
    return;
  }
  file[pointer.parent_pointer()].erase(pointer.back());
}

const std::vector<Spoiled>& header_faults() {
  static const std::vector<Spoiled> faults = {
      {"/model.norm.weight", kGone},
      {"/model.norm.weight", 7},
      {"/model.norm.weight", nullptr},
      {"/model.norm.weight", OrderedJson::array()},
      {"/model.norm.weight/dtype", kGone},
      {"/model.norm.weight/dtype", 1},
      {"/model.norm.weight/dtype", "F33"},
      {"/model.norm.weight/dtype", "f32"},
      {"/model.norm.weight/dtype", "BF16"},
      {"/model.norm.weight/dtype", "F64"},
      {"/model.norm.weight/dtype", "BOOL"},
      {"/model.norm.weight/dtype", "I32"},
      {"/model.norm.weight/dtype", "F4"},
      {"/model.norm.weight/shape", kGone},
      {"/model.norm.weight/shape", 32},
      {"/model.norm.weight/shape", OrderedJson::array()},
      {"/model.norm.weight/shape", {0}},
      {"/model.norm.weight/shape", {-32}},
      {"/model.norm.weight/shape", {31}},
      {"/model.norm.weight/shape", {33}},
      {"/model.norm.weight/shape", {32.0}},
      {"/model.norm.weight/shape", {"32"}},
      {"/model.norm.weight/shape", {16, 2}},
      {"/model.norm.weight/shape", {1, 1, 1, 1, 1, 32}},
      {"/model.norm.weight/shape", {2147483648}},
      {"/model.norm.weight/shape", {2147483647, 2147483647, 2147483647, 2147483647}},
      {"/model.norm.weight/shape", {18446744073709551615u}},
      {"/model.norm.weight/data_offsets", kGone},
      {"/model.norm.weight/data_offsets", 0},
      {"/model.norm.weight/data_offsets", {0}},
      {"/model.norm.weight/data_offsets", {0, 128, 256}},
      {"/model.norm.weight/data_offsets", {0, 128}},
      {"/model.norm.weight/data_offsets", {128, 0}},
      {"/model.norm.weight/data_offsets", {-128, 0}},
      {"/model.norm.weight/data_offsets", {"0", "128"}},
      {"/model.norm.weight/data_offsets", {18446744073709551488u, 18446744073709551615u}},
      {"/model.norm.weight/data_offsets", {1e300, 1e301}},
      {"/model.norm.weight/more", 1},
      {"/__metadata__", 3},
      {"/__metadata__/format", 3},
      {"/stranger", {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {0, 4}}}},
      {"/model.layers.0.mlp.up_proj.weight", kGone},
      {"/model.layers.0.mlp.up_proj.weight/dtype", "F16"},
      {"/model.layers.0.mlp.up_proj.weight/shape", {64, 16}},
      {"/lm_head.weight/data_offsets/1", 4},
      {"/lm_head.weight/data_offsets/0", 1},
  };
  return faults;
}

const std::vector<Spoiled>& config_faults() {
  static const std::vector<Spoiled> faults = {
      {"/model_type", kGone},
      {"/model_type", "llama5"},
      {"/model_type", 5},
      {"/model_type", "gpt_oss"},
      {"/architectures", {"LlamaForSequenceClassification"}},
      {"/architectures", {3}},
      {"/hidden_size", kGone},
      {"/hidden_size", "32"},
      {"/hidden_size", 0},
      {"/hidden_size", -32},
      {"/hidden_size", 33},
      {"/hidden_size", 64},
      {"/hidden_size", 1e9},
      {"/hidden_size", 18446744073709551615u},
      {"/num_hidden_layers", 0},
      {"/num_hidden_layers", 2},
      {"/num_hidden_layers", 1000000},
      {"/num_hidden_layers", kGone},
      {"/num_attention_heads", 0},
      {"/num_attention_heads", 3},
      {"/num_attention_heads", 4},
      {"/num_attention_heads", kGone},
      {"/num_key_value_heads", 3},
      {"/num_key_value_heads", 0},
      {"/num_key_value_heads", kGone},
      {"/head_dim", 0},
      {"/head_dim", 8},
      {"/head_dim", 100000},
      {"/intermediate_size", kGone},
      {"/intermediate_size", 64},
      {"/intermediate_size", true},
      {"/vocab_size", 0},
      {"/vocab_size", kGone},
      {"/max_position_embeddings", 0},
      {"/max_position_embeddings", kGone},
      {"/rms_norm_eps", kGone},
      {"/rms_norm_eps", 0},
      {"/rms_norm_eps", -1},
      {"/rms_norm_eps", "small"},
      {"/hidden_act", "gelu"},
      {"/hidden_act", 4},
      {"/rope_theta", 0},
      {"/rope_theta", "big"},
      {"/rope_scaling", 4},
      {"/rope_scaling", {{"rope_type", "spiral"}, {"factor", 2.0}}},
      {"/rope_scaling", {{"rope_type", "linear"}}},
      {"/rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}},
      {"/rope_scaling", {{"rope_type", "linear"}, {"factor", "2"}}},
      {"/rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}},
      {"/rope_scaling",
       {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 1.0}}},
      {"/rope_scaling", {{"rope_type", "longrope"}, {"short_factor", {1.0}}, {"long_factor", {1.0}}}},
      {"/rope_parameters", {{"rope_type", "spiral"}, {"rope_theta", 10000.0}}},
      {"/partial_rotary_factor", 0},
      {"/partial_rotary_factor", 2},
      {"/quantization_config", {{"quant_method", "awq"}}},
      {"/quantization_config", {{"bits", 4}}},
      {"/quantization_config", "gptq"},
      {"/quantization_config", {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 32}}},
      {"/quantization_config", {{"quant_method", "fp8"}}},
      {"/quantization_config", {{"quant_method", "mxfp4"}}},
      {"/tie_word_embeddings", "no"},
  };
  return faults;
}

const std::vector<Spoiled>& tokenizer_faults() {
  static const std::vector<Spoiled> faults = {
      {"/model", kGone},
      {"/model", 3},
      {"/model/type", "WordLevel"},
      {"/model/vocab", kGone},
      {"/model/vocab", OrderedJson::array()},
      {"/model/vocab", OrderedJson::object()},
      {"/model/vocab/a", -1},
      {"/model/vocab/a", "5"},
      {"/model/vocab/a", 5.5},
      {"/model/vocab/a", 100000000},
      {"/model/vocab/a", 20000},
      {"/model/vocab/another", 5},
      {"/model/merges", kGone},
      {"/model/merges", "a b"},
      {"/model/merges/0", 7},
      {"/model/merges/0", "ab"},
      {"/model/merges/0", "a b c"},
      {"/model/merges/0", {"a"}},
      {"/model/merges/0", {"a", "b", "c"}},
      {"/model/merges/0", {"a", ""}},
      {"/model/merges/0", {"a", 5}},
      {"/model/end_of_word_suffix", "</w>"},
      {"/model/dropout", 0.5},
      {"/added_tokens", 3},
      {"/added_tokens/0", 3},
      {"/added_tokens/0/id", kGone},
      {"/added_tokens/0/id", -1},
      {"/added_tokens/0/id", 5},
      {"/added_tokens/0/id", 16000000},
      {"/added_tokens/0/content", kGone},
      {"/added_tokens/0/content", ""},
      {"/added_tokens/0/content", std::string(5000, 'x')},
      {"/added_tokens/0/special", "yes"},
      {"/normalizer", {{"type", "Nmt"}}},
      {"/normalizer", OrderedJson::object()},
      {"/normalizer", {{"type", "Sequence"}}},
      {"/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}},
      {"/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "("}}}, {"content", "x"}}},
      {"/normalizer", {{"type", "Prepend"}}},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}},
      {"/pre_tokenizer", {{"type", "Split"}, {"behavior", "Isolated"}}},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "a{99999}"}}}, {"behavior", "Isolated"}}},
      {"/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}},
      {"/pre_tokenizer", nullptr},
      {"/pre_tokenizer/use_regex", "no"},
      {"/post_processor", {{"type", "RobertaProcessing"}}},
      {"/post_processor", {{"type", "TemplateProcessing"}}},
      {"/post_processor", {{"type", "TemplateProcessing"}, {"single", OrderedJson::array()}}},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
        {"special_tokens", OrderedJson::object()}}},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
        {"special_tokens", {{"<s>", {{"ids", {99999999}}}}}}}},
      {"/decoder", {{"type", "CTC"}}},
      {"/decoder", {{"type", "Strip"}, {"content", " "}, {"start", 4}, {"stop", 0}}},
  };
  return faults;
}

/// Every fault of a list, applied to one of the JSON files.
void check_faults(const std::vector<Spoiled>& faults, OrderedJson HfFiles::*file) {
  const HfFiles good = good_files();
  const Folder folder;
  for (const Spoiled& fault : faults) {
    HfFiles files = good;
    spoil(files.*file, fault);
    files.write(folder / "");
    check_refused(std::string(fault.pointer) + " " + (fault.value.is_discarded() ? "gone" : fault.value.dump()),
                  folder / "");
  }
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

std::string deep(size_t n) { return std::string(n, '[') + std::string(n, ']'); }

}  // namespace

TEST_CASE("the unspoiled folder loads") {
  const Folder folder;
  good_files().write(folder / "");
  CHECK(open(folder / "").message == "");
}

TEST_CASE("every fault of a safetensors header is refused by name") {
  REQUIRE(header_faults().size() + config_faults().size() + tokenizer_faults().size() >= 150);
  check_faults(header_faults(), &HfFiles::header);
}

TEST_CASE("every fault of a config.json is refused by name") { check_faults(config_faults(), &HfFiles::config); }

TEST_CASE("every fault of a tokenizer.json is refused by name") {
  check_faults(tokenizer_faults(), &HfFiles::tokenizer);
}

TEST_CASE("files that are no JSON, or too much of it, are refused") {
  const Folder folder;
  const HfFiles good = good_files();
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                           "special_tokens_map.json", "model.safetensors.index.json"}) {
    for (const std::string& text :
         {std::string("{"), std::string("[]"), std::string("null"), std::string("{\"a\": 1, \"a\": 2}"), deep(100000),
          "{\"a\": " + deep(100) + "}", std::string("{\"a\": \"\xFF\"}"), std::string("{\"a\": 1} x"),
          std::string("{\"a\": NaN}"), std::string("{\"a\\u0000\": 1, \"a\\u0000\": 1}")}) {
      good.write(folder / "");
      write_text(folder / name, text);
      check_refused(name + (" " + text.substr(0, 40)), folder / "");
      fs::remove(folder / name);
    }
  }
}

TEST_CASE("a safetensors file with the wrong length of header, or cut anywhere, is refused") {
  const HfFiles files = good_files();
  const Folder folder;
  files.write(folder / "");
  const std::string path = folder / "model.safetensors", bytes = files.safetensors();
  const std::string header = files.header.dump();
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{header.size() - 1}, uint64_t{header.size() + 1},
                                uint64_t{bytes.size()}, uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 7}) {
    std::string changed = bytes;
    std::memcpy(changed.data(), &length, sizeof length);
    write_text(path, changed);
    check_refused("header of " + std::to_string(length), folder / "");
  }
  for (size_t cut = 0; cut < bytes.size(); cut = cut < 64 ? cut + 1 : cut + cut / 3) {
    write_text(path, bytes.substr(0, cut));
    check_refused("cut to " + std::to_string(cut), folder / "");
  }
  for (const std::string& tail : {std::string(1, '\0'), std::string(4096, 'x')}) {
    write_text(path, bytes + tail);
    check_refused("longer", folder / "");
  }
  std::string twice = header;
  twice.insert(1, "\"model.norm.weight\": " + files.header["model.norm.weight"].dump() + ",");
  write_text(path, test::safetensors_bytes(twice, files.data));
  check_refused("a tensor that occurs twice", folder / "");
  for (const char* text : {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "<html></html>"}) {
    write_text(path, text);
    check_refused(text, folder / "");
  }
}

TEST_CASE("a file with any one byte changed is read or refused, never worse") {
  const HfFiles files = good_files();
  const Folder folder;
  uint32_t random = 1;
  const auto next = [&] { return random = random * 1664525u + 1013904223u, random >> 8; };
  const struct {
    const char* name;
    std::string bytes;
    size_t head;  ///< bytes that are worth changing
  } kinds[] = {{"model.safetensors", files.safetensors(), 8 + files.header.dump().size()},
               {"config.json", files.config.dump(), files.config.dump().size()},
               {"tokenizer.json", files.tokenizer.dump(), files.tokenizer.dump().size()}};
  for (const auto& kind : kinds) {
    files.write(folder / "");
    for (int i = 0; i < 150; ++i) {
      std::string bytes = kind.bytes;
      const size_t at = next() % kind.head;
      const auto bit = static_cast<char>(1u << next() % 8);
      bytes[at] = static_cast<char>(bytes[at] ^ bit);
      write_text(folder / kind.name, bytes);
      INFO(kind.name << " byte " << at);
      const Outcome outcome = open(folder / "", i % 2 == 0);
      if (outcome.refused) CHECK(is_one_clean_line(outcome.message));
    }
  }
}
