// The model of a tokenizer.json, and its added tokens. Ids are where the file says, so there may be holes between them.
#include "runtime/hf_tokenizer.h"

#include <algorithm>

#include "infer/error.h"
#include "models/config.h"
#include "runtime/token_roles.h"

namespace infer {
namespace {

constexpr char kMergeSeparator = '\0';

/// The name of an id that no token has: not UTF-8, so that no text is ever it.
std::string hole_name(size_t id) { return "\xFF no token " + std::to_string(id); }
bool is_hole(const std::string& token) { return token.starts_with('\xFF'); }

void make_room(Vocabulary& v, int64_t id) {
  for (size_t i = v.tokens.size(); i <= static_cast<size_t>(id); ++i) {
    v.tokens.push_back(hole_name(i));
    v.types.push_back(TokenType::unused);
    if (v.model == "unigram") v.scores.push_back(0);
  }
}

void read_vocab_object(const JsonObject& model, Vocabulary& v) {
  const auto vocab = model.find_object("vocab");
  if (!vocab || vocab->json().empty()) model.refuse("vocab", "required key is missing or empty");
  int64_t last = -1;
  for (const auto& [token, value] : vocab->json().items()) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() >= uint64_t{kMaxVocab})
      vocab->refuse(escaped(token), "not a token id", json_text(value), "0 to " + std::to_string(kMaxVocab - 1));
    last = std::max(last, value.get<int64_t>());
  }
  // Ids far beyond the number of tokens would cost memory for nothing.
  if (last >= 2 * static_cast<int64_t>(vocab->json().size()) + 4096)
    model.refuse("vocab", "ids with too many holes", std::to_string(last),
                 std::to_string(vocab->json().size()) + " tokens");
  make_room(v, last);
  for (const auto& [token, value] : vocab->json().items()) {
    const auto id = value.get<size_t>();
    if (token.empty()) continue;
    if (!is_hole(v.tokens[id]))
      vocab->refuse(escaped(token), "another token has this id", std::to_string(id), '"' + escaped(v.tokens[id]) + '"');
    v.tokens[id] = token;
    v.types[id] = TokenType::normal;
  }
}

std::string merge_text(const Json& merge, const JsonObject& model) {
  std::string left, right;
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      left = text.substr(0, space);
      right = text.substr(space + 1);
    }
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    left = merge[0].get<std::string>();
    right = merge[1].get<std::string>();
  }
  if (left.empty() || right.empty() || (left + right).find(kMergeSeparator) != std::string::npos)
    model.refuse("merges", "malformed merge", json_text(merge), "two tokens");
  return left + kMergeSeparator + right;
}

void read_bpe(const JsonObject& model, Vocabulary& v) {
  v.model = "bpe";
  v.merge_separator = kMergeSeparator;
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const auto text = model.find_string(key); text && !text->empty())
      model.refuse(key, "not supported", '"' + escaped(*text) + '"', "none");
  if (model.find_number("dropout").value_or(0) != 0) model.refuse("dropout", "not supported", "", "null");
  read_vocab_object(model, v);
  const Json::array_t* merges = model.find_array("merges");
  if (!merges) model.refuse("merges", "required key is missing");
  v.merges.reserve(merges->size());
  for (const Json& merge : *merges) v.merges.push_back(merge_text(merge, model));
  v.rules->fuse_unknown = model.find_bool("fuse_unk").value_or(false);
  v.rules->ignore_merges = model.find_bool("ignore_merges").value_or(false);
  if (const auto unk = model.find_string("unk_token")) {
    const auto found = std::find(v.tokens.begin(), v.tokens.end(), *unk);
    if (found != v.tokens.end()) v.unk = static_cast<int32_t>(found - v.tokens.begin());
  }
}

void read_unigram(const JsonObject& model, Vocabulary& v) {
  v.model = "unigram";
  v.rules->fuse_unknown = true;
  const Json::array_t* vocab = model.find_array("vocab");
  if (!vocab || vocab->empty()) model.refuse("vocab", "required key is missing or empty");
  if (vocab->size() > static_cast<size_t>(kMaxVocab)) model.refuse("vocab", "too many tokens");
  make_room(v, static_cast<int64_t>(vocab->size()) - 1);
  for (size_t id = 0; id < vocab->size(); ++id) {
    const Json& entry = (*vocab)[id];
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number())
      model.refuse("vocab", "malformed token", json_text(entry), "a text and a score");
    if (entry[0].get_ref<const std::string&>().empty()) continue;
    v.tokens[id] = entry[0].get<std::string>();
    v.types[id] = TokenType::normal;
    v.scores[id] = entry[1].get<float>();
  }
  if (const auto unk = model.find_int("unk_id", 0, v.size() - 1)) v.unk = static_cast<int32_t>(*unk);
}

void read_model(const JsonObject& root, Vocabulary& v) {
  const auto model = root.find_object("model");
  if (!model) root.refuse("model", "required key is missing");
  // Old files do not name the type; only one has merges.
  const std::string type = model->find_string("type").value_or(model->has("merges") ? "BPE" : "");
  if (type == "BPE") {
    read_bpe(*model, v);
  } else if (type == "Unigram") {
    read_unigram(*model, v);
  } else {
    model->refuse("type", "unsupported tokenizer model", '"' + escaped(type) + '"', "BPE, Unigram");
  }
  v.rules->byte_fallback = model->find_bool("byte_fallback").value_or(false);
  for (size_t id = 0; v.rules->byte_fallback && id < v.tokens.size(); ++id)
    if (byte_of(v.tokens[id])) v.types[id] = TokenType::byte;
}

}  // namespace

void add_token(Vocabulary& v, const AddedToken& token, const std::string& where) {
  const auto refuse = [&](const std::string& message, const std::string& allowed) {
    throw Error(ErrorKind::bad_file, where, message, std::to_string(token.id) + " \"" + escaped(token.text) + '"',
                allowed);
  };
  if (token.text.empty()) refuse("an added token is empty", "");
  if (token.id >= v.size() + 65536)
    refuse("the id of an added token is far behind the others", std::to_string(v.size()));
  make_room(v, token.id);
  const auto id = static_cast<size_t>(token.id);
  if (v.tokens[id] != token.text && !is_hole(v.tokens[id]))
    refuse("an added token has the id of another token", '"' + escaped(v.tokens[id]) + '"');
  v.tokens[id] = token.text;
  v.types[id] = token.special ? TokenType::control : TokenType::user_defined;
  const int roles = (token.strips_left ? kStripsLeft : 0) | (token.strips_right ? kStripsRight : 0) |
                    (token.single_word ? kSingleWord : 0) | (token.normalized ? kNormalized : 0);
  if (roles != 0) v.roles.emplace_back(static_cast<int32_t>(token.id), static_cast<uint8_t>(roles));
}

Vocabulary read_tokenizer_json(const JsonObject& root) {
  Vocabulary v;
  v.types_are_final = true;
  v.rules = read_text_rules(root);
  read_model(root, v);
  if (const Json::array_t* added = root.find_array("added_tokens")) {
    std::vector<AddedToken> tokens;
    for (const Json& one : *added) tokens.push_back(read_added_token(JsonObject(one, root.where("added_tokens"))));
    std::sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    for (const AddedToken& token : tokens) add_token(v, token, root.where("added_tokens"));
  }
  return v;
}

}  // namespace infer
