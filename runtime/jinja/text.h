// The string of the template engine: UTF-8 bytes that remember which of them came from outside the template.
// A chat template mixes its own control tokens with what people wrote; the tokenizer may only honour the former, so the
// mark has to survive concatenation, slicing and the rest. Knows code points and Python's idea of white space; knows no
// values and no limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infer::jinja {

/// Bytes [begin, end) of a text.
struct Span {
  size_t begin = 0, end = 0;
  bool operator==(const Span&) const = default;
};

struct Text {
  std::string bytes;
  std::vector<Span> user;  ///< bytes that came from the input: ascending, disjoint, never touching

  Text() = default;
  explicit Text(std::string_view written) : bytes(written) {}
  static Text from_user(std::string_view given);

  size_t size() const { return bytes.size(); }
  std::string_view view() const { return bytes; }
  bool has_user() const { return !user.empty(); }
  /// Marks bytes at the end of the text: `begin` is not before the last mark.
  void mark(size_t begin, size_t end);
  void append(std::string_view written) { bytes.append(written); }
  void append(const Text& other, size_t begin, size_t end);
  Text slice(size_t begin, size_t end) const;
};

/// Walks over the marks of a text together with its bytes.
class MarkCursor {
 public:
  explicit MarkCursor(const Text& text) : user_(text.user) {}
  /// Whether the byte is marked; asked with ascending positions.
  bool at(size_t byte);

 private:
  const std::vector<Span>& user_;
  size_t next_ = 0;
};

/// The code point at byte `at`, which is moved past it. An invalid byte is a code point of its own (0xDC00 + byte), so
/// every byte string has a length and can be taken apart and put together again.
uint32_t next_code_point(std::string_view bytes, size_t& at);
void append_code_point(std::string& bytes, uint32_t code_point);
size_t count_code_points(std::string_view bytes);
/// Byte offset of the code point with this index; the size when there are fewer.
size_t byte_offset(std::string_view bytes, size_t code_points);
bool is_ascii(std::string_view bytes);

// What Python's str methods ask of a character.
bool is_space(uint32_t code_point);
bool is_printable(uint32_t code_point);
bool is_letter(uint32_t code_point);
bool is_decimal(uint32_t code_point);
bool is_cased_upper(uint32_t code_point);
bool is_cased_lower(uint32_t code_point);
void append_upper(std::string& bytes, uint32_t code_point);
void append_lower(std::string& bytes, uint32_t code_point);

/// The range left when white space is taken from the ends.
Span strip_space(std::string_view bytes, bool left, bool right);

}  // namespace infer::jinja
