// The tokenizer: a scan for the next tag, then the inside of the tag. One pass, no regular expressions, no recursion.
#include "runtime/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "infer/error.h"

namespace infer::jinja {

namespace {

/// Line ends become "\n"; one at the very end goes.
std::string normalize_lines(std::string_view source) {
  std::string lines;
  lines.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    lines += source[i] == '\r' ? '\n' : source[i];
  }
  if (!lines.empty() && lines.back() == '\n') lines.pop_back();
  return lines;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' ||
         static_cast<unsigned char>(c) > 127;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_lines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) scan_outside();
    add(TokenKind::end, source_.size());
    return std::move(tokens_);
  }

 private:
  bool starts_with(std::string_view text) const { return std::string_view(source_).substr(at_).starts_with(text); }
  char peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }

  /// Offsets are asked for in ascending order, but for errors.
  Position position(size_t offset) {
    if (offset < counted_) counted_ = 0, line_ = 1, line_start_ = 0;
    for (; counted_ < offset; ++counted_) {
      if (source_[counted_] == '\n') ++line_, line_start_ = counted_ + 1, column_at_ = line_start_, column_ = 1;
    }
    if (column_at_ > offset || column_at_ < line_start_) column_at_ = line_start_, column_ = 1;
    for (; column_at_ < offset; ++column_at_) {
      if ((static_cast<unsigned char>(source_[column_at_]) & 0xC0) != 0x80) ++column_;
    }
    return {line_, column_};
  }

  Token& add(TokenKind kind, size_t offset) {
    tokens_.emplace_back();
    tokens_.back().kind = kind;
    tokens_.back().at = position(offset);
    return tokens_.back();
  }

  [[noreturn]] void fail(size_t offset, const std::string& message) { throw SyntaxFailure(position(offset), message); }

  void skip_space() {
    while (at_ < source_.size()) {
      size_t after = at_;
      if (!is_space(next_code_point(source_, after))) return;
      at_ = after;
    }
  }

  void add_data(size_t begin, size_t end) {
    if (begin < end) add(TokenKind::data, begin).text = source_.substr(begin, end - begin);
  }

  /// Where the text before a tag ends once `sign` and lstrip_blocks had their say.
  size_t end_of_text(size_t begin, size_t end, char sign, bool variable) const {
    const std::string_view text = std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') return begin + strip_space(text, false, true).end;
    if (sign == '+' || variable) return end;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    const bool starts_line = line > 0 || begin == 0 || source_[begin - 1] == '\n';
    if (!starts_line || strip_space(text.substr(line), true, false).begin != text.size() - line) return end;
    return begin + line;
  }

  void scan_outside() {
    const size_t begin = at_;
    size_t tag = begin;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        add_data(begin, source_.size());
        at_ = source_.size();
        return;
      }
      if (source_[tag + 1] == '{' || source_[tag + 1] == '%' || source_[tag + 1] == '#') break;
    }
    const char opener = source_[tag + 1];
    at_ = tag + 2;
    const char sign = peek() == '-' || peek() == '+' ? peek() : '\0';
    if (sign) ++at_;
    add_data(begin, end_of_text(begin, tag, sign, opener == '{'));
    if (opener == '#') {
      skip_comment(tag);
    } else if (opener == '{') {
      add(TokenKind::variable_begin, tag);
      scan_inside(tag, "}}");
    } else if (!scan_raw(tag)) {
      add(TokenKind::block_begin, tag);
      scan_inside(tag, "%}");
    }
  }

  /// After the end of a block, comment or raw section.
  void trim_newline(char sign) {
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && peek() == '\n') {
      ++at_;
    }
  }

  void skip_comment(size_t tag) {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail(tag, "the comment that starts here has no end");
    const char sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : '\0';
    at_ = end + 2;
    trim_newline(sign);
  }

  /// "{%" and an optional sign lie behind at_: whether a tag of just this word follows. Moves past it if so.
  bool take_word_tag(std::string_view word, char& sign) {
    const size_t begin = at_;
    skip_space();
    if (starts_with(word)) {
      at_ += word.size();
      skip_space();
      sign = peek() == '-' || peek() == '+' ? peek() : '\0';
      if (sign) ++at_;
      if (starts_with("%}")) {
        at_ += 2;
        return true;
      }
    }
    at_ = begin;
    return false;
  }

  bool scan_raw(size_t tag) {
    char sign = '\0';
    if (!take_word_tag("raw", sign)) return false;
    if (sign == '-') skip_space();
    const size_t begin = at_;
    for (size_t end = source_.find("{%", begin); end != std::string::npos; end = source_.find("{%", end + 2)) {
      at_ = end + 2;
      const char before = peek() == '-' || peek() == '+' ? peek() : '\0';
      if (before) ++at_;
      if (!take_word_tag("endraw", sign)) continue;
      add_data(begin, end_of_text(begin, end, before, false));
      trim_newline(sign);
      return true;
    }
    fail(tag, "the raw block that starts here has no end");
  }

  void scan_inside(size_t tag, std::string_view closer) {
    std::string open;  // brackets: within them the closer is just operators
    for (;;) {
      skip_space();
      if (at_ >= source_.size()) fail(tag, "the tag that starts here has no end");
      const bool signed_end =
          (peek() == '-' || (peek() == '+' && closer == "%}")) && source_.compare(at_ + 1, 2, closer) == 0;
      if (open.empty() && (signed_end || starts_with(closer))) {
        const char sign = signed_end ? peek() : '\0';
        add(closer == "%}" ? TokenKind::block_end : TokenKind::variable_end, at_);
        at_ += signed_end ? 3 : 2;
        if (sign == '-') skip_space();
        if (sign == '\0' && closer == "%}" && peek() == '\n') ++at_;
        return;
      }
      if (is_digit(peek())) {
        scan_number();
      } else if (is_name_byte(peek())) {
        const size_t begin = at_;
        while (at_ < source_.size() && is_name_byte(source_[at_])) ++at_;
        add(TokenKind::name, begin).text = source_.substr(begin, at_ - begin);
      } else if (peek() == '"' || peek() == '\'') {
        scan_string();
      } else {
        scan_operator(open);
      }
    }
  }

  void scan_operator(std::string& open) {
    static const std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                  "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                  ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto* found =
        std::find_if(std::begin(kOperators), std::end(kOperators), [&](auto op) { return starts_with(op); });
    if (found == std::end(kOperators)) fail(at_, "unexpected character '" + escaped(source_.substr(at_, 1)) + "'");
    const char c = (*found)[0];
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) {
        fail(at_, std::string("unexpected '") + c + "'" +
                      (open.empty() ? "" : std::string(", expected '") + open.back() + "'"));
      }
      open.pop_back();
    }
    add(TokenKind::op, at_).text = *found;
    at_ += found->size();
  }

  /// Digits with single underscores between them.
  std::string take_digits(int base) {
    std::string digits;
    const auto value = [](char c) {
      return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;
    };
    for (;; ++at_) {
      if (value(peek()) < base) {
        digits += peek();
      } else if (peek() != '_' || value(peek(1)) >= base) {
        return digits;
      }
    }
  }

  void scan_number() {
    const size_t begin = at_;
    const bool after_dot = begin > 0 && source_[begin - 1] == '.';
    const char letter = static_cast<char>(peek(1) | 32);
    const int base = peek() != '0' ? 10 : letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    if (base != 10) at_ += 2;
    std::string digits = take_digits(base);
    bool is_float = false;
    if (base == 10 && !after_dot && peek() == '.' && is_digit(peek(1))) {
      ++at_;
      digits += '.' + take_digits(10);
      is_float = true;
    }
    const size_t sign = peek(1) == '+' || peek(1) == '-' ? 1 : 0;
    if (base == 10 && !after_dot && (peek() == 'e' || peek() == 'E') && is_digit(peek(1 + sign))) {
      digits += 'e';
      if (sign && peek(1) == '-') digits += '-';
      at_ += 1 + sign;
      digits += take_digits(10);
      is_float = true;
    }
    Token& token = add(is_float ? TokenKind::number : TokenKind::integer, begin);
    token.text = digits;
    if (is_float) {
      const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), token.number);
      if (result.ec == std::errc::result_out_of_range) {
        token.number = digits.find("e-") != std::string::npos ? 0.0 : std::numeric_limits<double>::infinity();
      }
      return;
    }
    if (digits.empty()) fail(begin, "a number without digits");
    for (const char c : digits) {
      const int value = is_digit(c) ? c - '0' : (c | 32) - 'a' + 10;
      if (__builtin_mul_overflow(token.integer, base, &token.integer) ||
          __builtin_add_overflow(token.integer, value, &token.integer)) {
        fail(begin, "integer too large");
      }
    }
  }

  void scan_string() {
    const size_t begin = at_;
    const char quote = peek();
    std::string text;
    for (++at_; at_ < source_.size() && source_[at_] != quote;) {
      if (source_[at_] == '\\' && at_ + 1 < source_.size()) {
        scan_escape(text);
      } else {
        text += source_[at_++];
      }
    }
    if (at_ >= source_.size()) fail(begin, "the string that starts here has no end");
    ++at_;
    add(TokenKind::string, begin).text = std::move(text);
  }

  void scan_escape(std::string& text) {
    static const std::string_view kLetters = "abfnrtv\\'\"\n", kMeaning = "\a\b\f\n\r\t\v\\'\"";
    const size_t begin = at_;
    const char c = source_[at_ + 1];
    at_ += 2;
    const size_t known = kLetters.find(c);
    if (known != std::string_view::npos) {
      if (known < kMeaning.size()) text += kMeaning[known];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const int wanted = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      append_escape(text, begin, 16, wanted, wanted);
    } else if (c >= '0' && c <= '7') {
      --at_;
      append_escape(text, begin, 8, 1, 3);
    } else if (c == 'N') {
      fail(begin, "character names in strings (\\N{...}) are not supported");
    } else {
      text += '\\';  // Python keeps what it does not know
      text += c;
    }
  }

  void append_escape(std::string& text, size_t begin, int base, int least, int most) {
    const char* first = source_.data() + at_;
    const size_t digits = std::min<size_t>(static_cast<size_t>(most), source_.size() - at_);
    uint32_t value = 0;
    const auto result = std::from_chars(first, first + digits, value, base);
    const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
    if (result.ptr - first < least || value > 0x10FFFF || surrogate) fail(begin, "a malformed escape in a string");
    at_ += static_cast<size_t>(result.ptr - first);
    append_code_point(text, value);
  }

  const std::string source_;
  size_t at_ = 0;
  std::vector<Token> tokens_;
  size_t counted_ = 0, line_start_ = 0, column_at_ = 0;
  int line_ = 1, column_ = 1;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::data:
      return "template text";
    case TokenKind::variable_begin:
      return "'{{'";
    case TokenKind::variable_end:
      return "'}}'";
    case TokenKind::block_begin:
      return "'{%'";
    case TokenKind::block_end:
      return "'%}'";
    case TokenKind::end:
      return "the end of the template";
    case TokenKind::string:
      return "the string '" + escaped(token.text, 40) + "'";
    default:
      return "'" + escaped(token.text, 40) + "'";
  }
}

}  // namespace infer::jinja
