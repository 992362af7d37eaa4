// See hf_tokenizer_config.h.
#include "runtime/hf_tokenizer_config.h"

#include <algorithm>
#include <charconv>

#include "infer/error.h"
#include "models/config.h"
#include "runtime/mapped_file.h"

namespace infer {
namespace {

// A token is a text, or an object that holds one as "content".
std::optional<std::string> token_text(const JsonObject& config, const char* key) {
  const Json* token = config.find(key);
  if (!token) return std::nullopt;
  if (token->is_string()) return token->get<std::string>();
  if (token->is_object())
    if (const auto text = JsonObject(*token, config.where(key)).find_string("content")) return text;
  config.refuse(key, "wrong type", json_text(*token), "a string or null");
}

// A template is a text, or a list of named ones of which "default" is meant.
std::string template_text(const JsonObject& config) {
  const Json* value = config.find("chat_template");
  if (!value) return {};
  if (value->is_string()) return value->get<std::string>();
  if (value->is_array())
    for (const Json& one : *value)
      if (one.is_object() && one.value("name", Json()) == "default" && one.value("template", Json()).is_string())
        return one["template"].get<std::string>();
  config.refuse("chat_template", "unusable", json_text(*value), "a string, or a list with one named \"default\"");
}

std::vector<AddedToken> read_added(const JsonObject& config) {
  std::vector<AddedToken> out;
  const auto added = config.find_object("added_tokens_decoder");
  if (!added) return out;
  for (const auto& [key, value] : added->json().items()) {
    int64_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= kMaxVocab)
      added->refuse(escaped(key), "not a token id");
    out.push_back(read_added_token(JsonObject(value, added->where(escaped(key))), id));
  }
  std::sort(out.begin(), out.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return out;
}

void read_texts(const JsonObject& object, HfTokenizerConfig& out) {
  const auto take = [&](const char* key, std::optional<std::string>& text) {
    if (!text) text = token_text(object, key);
  };
  take("bos_token", out.bos);
  take("eos_token", out.eos);
  take("pad_token", out.pad);
}

}  // namespace

AddedToken read_added_token(const JsonObject& object, std::optional<int64_t> id) {
  AddedToken token;
  token.id = id ? *id : object.get_int("id", 0, kMaxVocab - 1);
  token.text = object.get_string("content");
  token.special = object.find_bool("special").value_or(false);
  token.strips_left = object.find_bool("lstrip").value_or(false);
  token.strips_right = object.find_bool("rstrip").value_or(false);
  token.single_word = object.find_bool("single_word").value_or(false);
  token.normalized = object.find_bool("normalized").value_or(!token.special);
  return token;
}

HfTokenizerConfig read_hf_tokenizer_config(const std::string& folder) {
  HfTokenizerConfig out;
  const std::string path = folder + "/tokenizer_config.json", map_path = folder + "/special_tokens_map.json";
  if (is_file(path)) {
    const Json json = parse_json(read_small_file(path), shown_path(path));
    const JsonObject config(json, shown_path(path));
    read_texts(config, out);
    out.add_bos = config.find_bool("add_bos_token");
    out.add_eos = config.find_bool("add_eos_token");
    out.added = read_added(config);
    out.chat_template = template_text(config);
  }
  if (is_file(map_path)) {
    const Json json = parse_json(read_small_file(map_path), shown_path(map_path));
    read_texts(JsonObject(json, shown_path(map_path)), out);
  }
  const std::string jinja_path = folder + "/chat_template.jinja";
  if (is_file(jinja_path)) out.chat_template = read_small_file(jinja_path);
  return out;
}

}  // namespace infer
