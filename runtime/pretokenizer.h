// Cuts text into the words inside which byte-level BPE merges. Which cuts a model was trained with is named in its file
// (tokenizer.ggml.pre); pretokenizer_table.cpp holds the table from names to patterns. A name that is not in the table
// is refused, because a neighbouring rule would give wrong tokens without a sign. Knows nothing of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace infer {

/// How the matches of a pattern cut a piece of text. What lies between matches becomes pieces as well.
enum class Cut {
  around,     ///< each match is a piece
  in_threes,  ///< each match is cut into groups of three characters counted from its right end
};

struct CutRule {
  std::string_view pattern;  ///< PCRE2, UTF and UCP; \s and \S mean Unicode White_Space
  Cut cut = Cut::around;
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
  /// Compiles the patterns. Throws Error(bad_file) when one is not a valid pattern.
  explicit Pretokenizer(const std::vector<CutRule>& rules);
  ~Pretokenizer();
  /// Offsets where the words of `text` (valid UTF-8, below 4 GiB) end, ascending; the last one is text.size().
  std::vector<uint32_t> split(std::string_view text) const;

 private:
  class Pattern;
  std::vector<std::unique_ptr<Pattern>> patterns_;
};

}  // namespace infer
