// How text is prepared for a subword model and how tokens become text again, as tokenizer.json says it in data. Plain
// data: normalizer.h and pretokenizer.h run it. GGUF files have none of it; their tokenizer models imply it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/pretokenizer.h"

namespace infer {

/// One step that changes text.
struct TextStep {
  enum Kind {
    nfc,
    nfd,
    nfkc,
    nfkd,
    lowercase,
    strip,          ///< white space at the ends, as `left` and `right` say
    prepend,        ///< `content` in front of text that is not empty
    replace,        ///< every `pattern` by `content`
    replace_regex,  ///< the same, `pattern` being a regular expression
    begin_with,     ///< `content` in front of text that does not begin with it
  };
  Kind kind = nfc;
  std::string pattern = {}, content = {};
  bool left = false, right = false;
  bool only_first = false;  ///< only where the text to encode begins, not behind special tokens
  bool only_last = false;   ///< only where it ends
};

struct TextRules {
  std::vector<TextStep> normalizer;    ///< before tokens with AddedToken::normalized are searched for
  std::vector<TextStep> pretokenizer;  ///< behind that, before the cuts
  std::vector<CutRule> cuts;
  bool byte_level = false;             ///< tokens are written in the printable alphabet of bytes (bpe.h)
  bool byte_fallback = false;          ///< what is no token becomes the tokens <0xHH> of its bytes
  bool fuse_unknown = false;           ///< unknown characters side by side are one unknown token
  bool ignore_merges = false;          ///< a word that is a token is that token
  std::vector<int32_t> before, after;  ///< ids around a text when special tokens are added
  std::vector<std::pair<std::string, std::string>> decoded;  ///< replacements in the text of a token
  bool strips_space = false;                                 ///< decoding drops a space in front of all
};

}  // namespace infer
