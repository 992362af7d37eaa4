// UTF-8 as the tokenizer and streamed answers need it: the length of a well-formed character, replacing what is not
// one, and holding back a character whose last bytes have not arrived. Knows nothing of tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace infer {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  ///< U+FFFD

/// Length of the well-formed character at text[at] (Unicode 15, table 3-7), or 0.
size_t utf8_length(std::string_view text, size_t at);
/// The code point of a well-formed character of `length` bytes at text[at].
uint32_t utf8_decode(std::string_view text, size_t at, size_t length);
void utf8_append(std::string& out, uint32_t code_point);
/// Offset of the first byte that is not part of a well-formed character; text.size() when all are.
size_t utf8_first_bad(std::string_view text);
/// The text with every byte outside a well-formed character replaced by U+FFFD.
std::string utf8_repaired(std::string_view text);

/// Bytes of the white space character (Unicode's White_Space) that begins at text[at], or ends right before text[end];
/// 0 when there is another character or none.
size_t blank_length(std::string_view text, size_t at);
size_t blank_length_before(std::string_view text, size_t end);
/// Whether a letter, mark, digit or connecting sign begins at text[at], or ends right before text[end].
bool word_begins(std::string_view text, size_t at);
bool word_ends(std::string_view text, size_t end);

/// Turns pieces of bytes into pieces of whole characters. Everything it returns is well-formed UTF-8.
class Utf8Stream {
 public:
  /// The characters that are complete now. Bytes that can become one are kept; bytes that cannot become U+FFFD, one for
  /// each longest beginning of a character, as Unicode recommends.
  std::string feed(std::string_view bytes);
  /// At the end: U+FFFD for an unfinished character, else nothing.
  std::string flush();
  size_t pending() const { return kept_.size(); }

 private:
  std::string kept_;  ///< at most three bytes
};

}  // namespace infer
