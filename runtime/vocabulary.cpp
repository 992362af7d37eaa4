// Reads the keys below tokenizer.ggml. Every id is checked against the number of tokens where it enters, the defaults
// of a family included; arrays are checked for element type and length together.
#include "runtime/vocabulary.h"

#include <algorithm>
#include <cmath>

#include "runtime/sentencepiece_model.h"

namespace infer {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr size_t kMaxTokenBytes = size_t{1} << 31;    // of all tokens together
constexpr size_t kMaxSpecialBytes = size_t{1} << 10;  // of one that is searched for in every text
constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kScores = "tokenizer.ggml.scores";
constexpr const char* kTypes = "tokenizer.ggml.token_type";
constexpr const char* kMerges = "tokenizer.ggml.merges";

struct SpecialKey {
  const char* key;
  int32_t Vocabulary::*id;
  int32_t sentencepiece_default;
};
constexpr SpecialKey kSpecialKeys[] = {
    {"tokenizer.ggml.bos_token_id", &Vocabulary::bos, 1},
    {"tokenizer.ggml.eos_token_id", &Vocabulary::eos, 2},
    {"tokenizer.ggml.unknown_token_id", &Vocabulary::unk, 0},
    {"tokenizer.ggml.eot_token_id", &Vocabulary::eot, -1},
    {"tokenizer.ggml.eom_token_id", &Vocabulary::eom, -1},
    {"tokenizer.ggml.seperator_token_id", &Vocabulary::sep, -1},  // spelled so in the format
    {"tokenizer.ggml.padding_token_id", &Vocabulary::pad, -1},
    {"tokenizer.ggml.fim_pad_token_id", &Vocabulary::fim_pad, -1},
    {"tokenizer.ggml.fim_rep_token_id", &Vocabulary::fim_rep, -1},
    {"tokenizer.ggml.fim_sep_token_id", &Vocabulary::fim_sep, -1},
};
// Not used, but a file that is wrong about them is not to be trusted with the others either.
constexpr const char* kOtherIds[] = {"tokenizer.ggml.mask_token_id",    "tokenizer.ggml.fim_pre_token_id",
                                     "tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.fim_mid_token_id",
                                     "tokenizer.ggml.prefix_token_id",  "tokenizer.ggml.suffix_token_id",
                                     "tokenizer.ggml.middle_token_id"};

void read_tokens(const Checkpoint& file, Vocabulary& v) {
  const std::vector<std::string>* tokens = file.find_strings(kTokens);
  if (tokens == nullptr) file.refuse(kTokens, "the vocabulary is missing", "no such key", "an array of strings");
  const auto n = static_cast<int64_t>(tokens->size());
  if (n < 1 || n > kMaxTokens) {
    file.refuse(kTokens, "number of tokens", std::to_string(n), "1 to " + std::to_string(kMaxTokens));
  }
  v.tokens = *tokens;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (!v.tokens[i].empty()) continue;
    v.tokens[i] = "[EMPTY_" + std::to_string(i) + "]";
    v.warnings.push_back("token " + std::to_string(i) + " is empty; it is named " + v.tokens[i]);
  }
}

// Element types are part of the format: a list of bytes or strings in the place of scores is a broken file.
void expect_type(const Checkpoint& file, const char* key, std::initializer_list<std::string_view> allowed) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) return;
  std::string names;
  for (const std::string_view type : allowed) {
    if (found->second.type == type) return;
    names += (names.empty() ? "" : " or ") + std::string(type);
  }
  file.refuse(key, "element type", found->second.type, names);
}

void read_scores(const Checkpoint& file, Vocabulary& v) {
  expect_type(file, kScores, {"array of f32", "array of i32"});
  if (!file.has(kScores)) return;
  v.scores.reserve(v.tokens.size());
  if (file.metadata.find(kScores)->second.type == "array of i32") {
    const auto scores = file.find_ints(kScores, v.size(), INT32_MIN, INT32_MAX);
    for (const int64_t s : *scores) v.scores.push_back(static_cast<float>(s));
  } else {
    const auto scores = file.find_floats(kScores, v.size());
    for (const double s : *scores) v.scores.push_back(static_cast<float>(s));
  }
}

void read_types(const Checkpoint& file, Vocabulary& v) {
  expect_type(file, kTypes, {"array of i32", "array of u32"});
  const auto types = file.find_ints(kTypes, v.size(), 0, static_cast<int64_t>(TokenType::byte));
  if (!types) return;
  for (const int64_t t : *types) v.types.push_back(static_cast<TokenType>(t));
}

void read_special_ids(const Checkpoint& file, Vocabulary& v) {
  const int64_t last = v.size() - 1;
  for (const SpecialKey& special : kSpecialKeys) {
    const int32_t standard = v.model == "llama" ? special.sentencepiece_default : -1;
    const auto id = file.find_int(special.key, 0, last);
    v.*special.id = id ? static_cast<int32_t>(*id) : (standard <= last ? standard : -1);
  }
  for (const char* key : kOtherIds) file.find_int(key, 0, last);
}

// The other model of SentencePiece, by the name of the family that brought it into GGUF files.
void read_unigram(const Checkpoint& file, Vocabulary& v) {
  v.model = "unigram";
  UnigramSettings settings;
  v.remove_extra_spaces = file.find_bool("tokenizer.ggml.remove_extra_whitespaces");
  settings.strips_spaces = v.remove_extra_spaces.value_or(false);
  settings.dummy_prefix = v.add_space_prefix.value_or(false);
  v.rules = unigram_rules(settings);
  if (v.add_bos.value_or(false) && v.bos >= 0) v.rules->before = {v.bos};
  if (v.add_eos.value_or(true) && v.eos >= 0) v.rules->after = {v.eos};
}

}  // namespace

bool Vocabulary::reachable(int32_t id) const {
  const TokenType t = type(id);
  return t != TokenType::control && t != TokenType::unknown && t != TokenType::byte;
}

size_t Vocabulary::n_bytes() const {
  size_t bytes = 0;
  for (const std::string& token : tokens) bytes += token.size();
  return bytes;
}

std::optional<uint8_t> byte_of(const std::string& token) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return std::nullopt;
  const int high = digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

std::optional<Vocabulary> vocabulary_from(const Checkpoint& file) {
  const auto model = file.find_string("tokenizer.ggml.model");
  if (!model || *model == "none" || *model == "no_vocab") return std::nullopt;
  if (*model != "llama" && *model != "gpt2" && *model != "t5") {
    file.refuse("tokenizer.ggml.model", "tokenizer model is not supported", '"' + escaped(*model) + '"',
                "\"llama\" (SentencePiece), \"gpt2\" (byte-level BPE), \"t5\" (Unigram)");
  }
  if (file.has("tokenizer.ggml.precompiled_charsmap")) {
    file.refuse("tokenizer.ggml.precompiled_charsmap", "a normaliser table is not supported");
  }
  Vocabulary v;
  v.source = file.path;
  v.model = *model;
  v.name = file.find_string("general.name").value_or("");
  read_tokens(file, v);
  read_scores(file, v);
  read_types(file, v);
  read_special_ids(file, v);
  v.add_bos = file.find_bool("tokenizer.ggml.add_bos_token");
  v.add_eos = file.find_bool("tokenizer.ggml.add_eos_token");
  v.add_space_prefix = file.find_bool("tokenizer.ggml.add_space_prefix");
  v.nfc = file.find_bool(kNfcKey).value_or(false);
  v.types_are_final = file.find_bool(kTypesKey).value_or(false);
  const auto pre = file.find_string("tokenizer.ggml.pre");
  if (v.model == "gpt2") {
    v.pre = pre.value_or("default");
    if (!pre) v.warnings.push_back("tokenizer.ggml.pre is missing: cutting words by the rule \"default\"");
    const std::vector<std::string>* merges = file.find_strings(kMerges);
    if (merges == nullptr) file.refuse(kMerges, "the merges are missing", "no such key", "an array of strings");
    v.merges = *merges;
  }
  if (v.model == "t5") read_unigram(file, v);
  validate(v);
  return v;
}

void validate(const Vocabulary& v) {
  const auto refuse = [&](const std::string& what, const std::string& message, const std::string& found,
                          const std::string& allowed) {
    throw Error(ErrorKind::bad_file, v.source.empty() ? what : escaped(v.source) + ": " + what, message, found,
                allowed);
  };
  const size_t n = v.tokens.size();
  if (n < 1 || n > static_cast<size_t>(kMaxTokens)) {
    refuse(kTokens, "number of tokens", std::to_string(n), "1 to " + std::to_string(kMaxTokens));
  }
  if (!v.scores.empty() && v.scores.size() != n) {
    refuse(kScores, "number of scores", std::to_string(v.scores.size()), std::to_string(n));
  }
  if (!v.types.empty() && v.types.size() != n) {
    refuse(kTypes, "number of token types", std::to_string(v.types.size()), std::to_string(n));
  }
  if (std::any_of(v.scores.begin(), v.scores.end(), [](float s) { return std::isnan(s); })) {
    refuse(kScores, "score", "NaN", "a number");
  }
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<int32_t>(i);
    const TokenType type = v.type(id);
    const std::string where = std::string(kTokens) + " " + std::to_string(i);
    if (v.tokens[i].empty()) refuse(where, "empty token", "", "");
    if (type == TokenType::byte && !byte_of(v.tokens[i])) {
      refuse(where, "byte token", '"' + escaped(v.tokens[i]) + '"', "<0x00> to <0xFF>");
    }
    const bool searched = type == TokenType::control || type == TokenType::user_defined || type == TokenType::unknown;
    if (searched && v.tokens[i].size() > kMaxSpecialBytes) {
      refuse(where, "special token of " + std::to_string(v.tokens[i].size()) + " bytes", "",
             "up to " + std::to_string(kMaxSpecialBytes));
    }
  }
  if (v.n_bytes() > kMaxTokenBytes) {
    refuse(kTokens, "text of all tokens", std::to_string(v.n_bytes()) + " bytes", "up to 2 GiB");
  }
  std::vector<int32_t> ids = v.ends;
  if (v.rules) {
    ids.insert(ids.end(), v.rules->before.begin(), v.rules->before.end());
    ids.insert(ids.end(), v.rules->after.begin(), v.rules->after.end());
  }
  for (const auto& [id, role] : v.roles) ids.push_back(id);
  for (const int32_t id : ids)
    if (id < 0 || id >= v.size())
      refuse("special token", "token id", std::to_string(id), "0 to " + std::to_string(v.size() - 1));
  for (const SpecialKey& special : kSpecialKeys) {
    const int32_t id = v.*special.id;
    if (id < -1 || id >= v.size()) {
      refuse(special.key, "token id", std::to_string(id), "0 to " + std::to_string(v.size() - 1));
    }
  }
}

}  // namespace infer
