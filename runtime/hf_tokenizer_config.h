// What a Hugging Face folder says about its tokenizer beside tokenizer.json: tokenizer_config.json (with
// special_tokens_map.json where that is silent) and the chat template, which may be a file of its own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/json_file.h"

namespace infer {

/// A token that is searched for in text before anything else.
struct AddedToken {
  int64_t id = 0;
  std::string text;
  bool special = false;      ///< a control token
  bool strips_left = false;  ///< takes the white space before it
  bool strips_right = false;
  bool single_word = false;  ///< not inside a word
  bool normalized = false;   ///< searched for in normalised text
};

/// One entry of "added_tokens" or "added_tokens_decoder". `id` is read from the object unless given.
AddedToken read_added_token(const JsonObject& object, std::optional<int64_t> id = std::nullopt);

struct HfTokenizerConfig {
  std::optional<std::string> bos, eos, pad;  ///< texts of these tokens
  std::optional<bool> add_bos, add_eos;
  std::string chat_template;      ///< "" when there is none
  std::vector<AddedToken> added;  ///< of added_tokens_decoder, by id
};

/// Of a folder without tokenizer_config.json: nothing but what chat_template.jinja says. Throws Error(bad_file) for a
/// file that is too long, not JSON, or has a field of the wrong type.
HfTokenizerConfig read_hf_tokenizer_config(const std::string& folder);

}  // namespace infer
