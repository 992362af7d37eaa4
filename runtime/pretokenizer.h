// Cuts text into the words inside which a subword model merges. Which cuts a model was trained with stands in
// tokenizer.json, or is named in a GGUF file (tokenizer.ggml.pre): pretokenizer_table.cpp holds the table from names to
// patterns. A name that is not in the table is refused, because a neighbouring rule would give wrong tokens without a
// sign. Knows nothing of tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/regex.h"

namespace infer {

/// How the matches of a pattern cut a piece of text. What lies between matches becomes pieces as well.
enum class Cut {
  around,         ///< each match is a piece
  in_threes,      ///< each match is cut into groups of three characters counted from its right end
  together,       ///< matches that follow each other are one piece
  with_previous,  ///< a match ends the piece before it
  with_next,      ///< a match begins the piece behind it
  removed,        ///< matches are left out
};

struct CutRule {
  std::string pattern;  ///< PCRE2, UTF and UCP; \s and \S mean Unicode White_Space
  Cut cut = Cut::around;
  bool invert = false;  ///< what lies between matches takes the part of the matches, and the reverse
};

/// A word: bytes [begin, end) of the text.
struct Span {
  uint32_t begin = 0, end = 0;
  bool operator==(const Span&) const = default;
};

/// The rules behind one name. Each rule cuts all pieces that the rules before it left.
struct PretokenizerSpec {
  std::vector<CutRule> rules;
  bool ignore_merges = false;  ///< a word that is a token is that token, whatever the merges say
  bool adds_bos = false;       ///< unless the file says otherwise
};

/// Throws Error(bad_file) for a name that is not known; `where` begins the message.
PretokenizerSpec pretokenizer_spec(const std::string& name, const std::string& where);
/// All names of the table, for messages and tests.
std::vector<std::string> pretokenizer_names();

class Pretokenizer {
 public:
  /// Compiles the patterns. Throws Error(bad_file), which begins with `where`, when one is not valid.
  explicit Pretokenizer(const std::vector<CutRule>& rules, const std::string& where = "tokenizer");
  /// The words of `text` (valid UTF-8, below 4 GiB) in order. None is empty.
  std::vector<Span> split(std::string_view text) const;

 private:
  struct Rule {
    Regex regex;
    Cut cut;
    bool invert;
  };
  std::vector<Rule> rules_;
};

}  // namespace infer
