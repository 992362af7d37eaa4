// tokenizer.json and tokenizer.model against recorded answers of the libraries tokenizers 0.22 and sentencepiece 0.2:
// ids with and without special tokens, and the text of the ids.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/hf_folder.h"
#include "runtime/tokenizer.h"
#include "tests/catch.h"
#include "tests/folder.h"

using namespace infer;
using nlohmann::json;
namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

namespace {

const std::string kData = std::string(TEST_DATA) + "/tokenizers/hf/";

Tokenizer recorded(const std::string& name) {
  const test::Folder folder;
  const bool is_json = fs::exists(kData + name + ".json");
  fs::copy_file(kData + name + (is_json ? ".json" : ".model"),
                folder / (is_json ? "tokenizer.json" : "tokenizer.model"));
  return Tokenizer(*read_hf_vocabulary(folder / ""));
}

Tokenizer from_json(const json& value) {
  const test::Folder folder;
  std::ofstream(folder / "tokenizer.json") << value.dump();
  return Tokenizer(*read_hf_vocabulary(folder / ""));
}

json tokenizer_json(const std::string& name) { return json::parse(std::ifstream(kData + name + ".json")); }

}  // namespace

TEST_CASE("tokenizer files give the ids and texts that their libraries give") {
  // Normalisers and pre-tokenizers of every kind, flags of added tokens, templates: see the files.
  for (const std::string name : {"llama2_form", "gemma_form", "byte_level", "prefix_space", "folded", "metaspace_first",
                                 "unigram", "spm_bpe", "spm_unigram", "spm_unigram_unk"}) {
    const Tokenizer tokenizer = recorded(name);
    std::ifstream lines(kData + name + ".jsonl");
    int n = 0;
    for (std::string line; std::getline(lines, line); ++n) {
      const json row = json::parse(line);
      const auto text = row["text"].get<std::string>();
      CAPTURE(name, text);
      CHECK(tokenizer.encode(text, false) == row["plain"].get<Ids>());
      if (row.contains("ids")) CHECK(tokenizer.encode(text, true) == row["ids"].get<Ids>());
      if (row.contains("decoded"))
        CHECK(tokenizer.decode(row["plain"].get<Ids>()) == row["decoded"].get<std::string>());
    }
    CHECK(n > 15);
  }
}

TEST_CASE("a user's text never becomes a control token, in files of every kind") {
  for (const std::string name : {"llama2_form", "gemma_form", "byte_level", "unigram"}) {
    const Tokenizer tokenizer = recorded(name);
    for (const int32_t id : tokenizer.encode("a<s>b</s> <mask> c", false, false)) {
      CAPTURE(name, id);
      CHECK((id == tokenizer.vocabulary().unk || !tokenizer.is_control(id)));
    }
  }
}

TEST_CASE("what a tokenizer.json asks for and nobody here does is refused by name") {
  const auto refused = [](const json& value, const std::string& expect) {
    INFO(expect);
    try {
      from_json(value);
      FAIL_CHECK("accepted");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::bad_file);
      CHECK_THAT(e.what(), Catch::Contains(expect));
    }
  };
  const json good = tokenizer_json("byte_level");
  const auto with = [&](const char* path, const json& value) {
    json changed = good;
    changed[json::json_pointer(path)] = value;
    return changed;
  };
  CHECK(from_json(good).n_tokens() > 400);
  refused(with("/model/type", "WordPiece"), "\"WordPiece\"");
  refused(with("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AA=="}}), "\"Precompiled\"");
  refused(with("/pre_tokenizer", {{"type", "BertPreTokenizer"}}), "\"BertPreTokenizer\"");
  refused(with("/post_processor", {{"type", "BertProcessing"}}), "\"BertProcessing\"");
  refused(with("/decoder", {{"type", "WordPiece"}}), "\"WordPiece\"");
  refused(with("/model/continuing_subword_prefix", "##"), "continuing_subword_prefix");
  refused(with("/model/dropout", 0.1), "dropout");
  refused(with("/pre_tokenizer/pretokenizers/1/pattern", {{"Regex", "(["}}), "pattern");
  refused(with("/pre_tokenizer/pretokenizers/1/pattern", {{"Regex", "\\C"}}), "pattern");
  refused(with("/pre_tokenizer/pretokenizers/1/behavior", "Sideways"), "\"Sideways\"");
}

TEST_CASE("a pattern from a file that would never end is stopped") {
  json value = tokenizer_json("byte_level");
  value["normalizer"] = nullptr;
  value["pre_tokenizer"]["pretokenizers"][1]["pattern"]["Regex"] = "(a+)+$";
  const Tokenizer tokenizer = from_json(value);
  CHECK(tokenizer.encode("aaaa", false).size() > 0);
  try {
    tokenizer.encode(std::string(60, 'a') + "b", false);
    FAIL_CHECK("no limit was reached");
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::run);
  }
}

TEST_CASE("a normalizer cannot make text grow without end") {
  json value = tokenizer_json("byte_level");
  value["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
  const json grow = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(60, 'a')}};
  for (int i = 0; i < 20; ++i) value["normalizer"]["normalizers"].push_back(grow);
  CHECK_THROWS_AS(from_json(value).encode("aaaa", false), Error);
}
