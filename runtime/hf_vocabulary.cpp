// The vocabulary of a Hugging Face folder: tokenizer.json, else tokenizer.model, completed by what the other files say
// about single tokens: which begin a text, which end an answer.
#include <algorithm>

#include "infer/error.h"
#include "runtime/hf_config.h"
#include "runtime/hf_folder.h"
#include "runtime/hf_tokenizer.h"
#include "runtime/mapped_file.h"
#include "runtime/sentencepiece_model.h"

namespace infer {
namespace {

/// The token of this text; -1, with a warning, when there is none.
int32_t find_token(Vocabulary& v, const std::optional<std::string>& text, const char* key) {
  if (!text) return -1;
  const auto found = std::find(v.tokens.begin(), v.tokens.end(), *text);
  if (found != v.tokens.end()) return static_cast<int32_t>(found - v.tokens.begin());
  v.warnings.push_back(std::string(key) + " \"" + escaped(*text) + "\" is not a token");
  return -1;
}

/// Ids of config.json and generation_config.json; those of tokens that are not there are told and left out.
void add_ends(const std::string& path, Vocabulary& v, bool is_config) {
  if (!is_file(path)) return;
  const Json json = parse_json(read_small_file(path), shown_path(path));
  const JsonObject config(json, shown_path(path));
  for (const int64_t id : read_eos_ids(config)) {
    if (id >= v.size()) {
      v.warnings.push_back(shown_path(path) + ": eos_token_id " + std::to_string(id) + " is not a token");
      continue;
    }
    v.ends.push_back(static_cast<int32_t>(id));
    if (v.eos < 0) v.eos = static_cast<int32_t>(id);
  }
  const auto bos = is_config && v.bos < 0 ? config.find_int("bos_token_id", 0, INT32_MAX) : std::nullopt;
  if (bos && *bos < v.size()) v.bos = static_cast<int32_t>(*bos);
  // Some files have -1 for none.
  const Json* pad = is_config && v.pad < 0 ? config.find("pad_token_id") : nullptr;
  if (pad && pad->is_number_unsigned() && pad->get<uint64_t>() < static_cast<uint64_t>(v.size()))
    v.pad = pad->get<int32_t>();
}

}  // namespace

std::optional<Vocabulary> read_hf_vocabulary(const std::string& folder) {
  const std::string json_path = folder + "/tokenizer.json", model_path = folder + "/tokenizer.model";
  const HfTokenizerConfig config = read_hf_tokenizer_config(folder);
  Vocabulary v;
  if (is_file(json_path)) {
    const Json json = parse_json(read_small_file(json_path, kMaxTokenizerBytes), shown_path(json_path));
    v = read_tokenizer_json(JsonObject(json, shown_path(json_path)));
    v.source = json_path;
  } else if (is_file(model_path)) {
    v = read_sentencepiece_model(model_path);
    for (const AddedToken& token : config.added) add_token(v, token, folder + "/tokenizer_config.json");
  } else {
    return std::nullopt;
  }
  if (const int32_t id = find_token(v, config.bos, "bos_token"); id >= 0) v.bos = id;
  if (const int32_t id = find_token(v, config.eos, "eos_token"); id >= 0) v.eos = id;
  if (const int32_t id = find_token(v, config.pad, "pad_token"); id >= 0) v.pad = id;
  add_ends(folder + "/config.json", v, true);
  add_ends(folder + "/generation_config.json", v, false);
  if (!v.rules) {
    v.add_bos = config.add_bos;
    v.add_eos = config.add_eos;
  } else if (v.rules->before.empty() && v.rules->after.empty()) {
    if (config.add_bos.value_or(false) && v.bos >= 0) v.rules->before = {v.bos};
    if (config.add_eos.value_or(false) && v.eos >= 0) v.rules->after = {v.eos};
  }
  return v;
}

}  // namespace infer
