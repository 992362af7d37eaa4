// Both formatters read their own syntax into the same Layout; one function then lays a value out.
#include "runtime/jinja/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "infer/error.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/print.h"
#include "runtime/jinja/text_tools.h"

namespace infer::jinja {

namespace {

constexpr int64_t kMaxPrecision = 400;

struct Layout {
  std::string fill = " ";
  char align = '\0';  ///< < > ^ = or none given
  char sign = '-';    ///< - + or blank
  bool alternate = false, grouped = false;
  int64_t width = 0, precision = -1;
  char type = '\0';
};

[[noreturn]] void fail_type(char type, const Value& value) {
  throw Failure(std::string("format '") + escaped(std::string(1, type)) + "' does not fit a value of type '" +
                type_name(value) + "'");
}

void check_precision(const Layout& layout) {
  if (layout.precision > kMaxPrecision) {
    throw Failure("a number is formatted with at most " + std::to_string(kMaxPrecision) + " digits");
  }
}

std::string group_thousands(std::string digits) {
  const size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  for (size_t at = whole; at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

/// Digits of a number without its sign.
std::string float_digits(double magnitude, const Layout& layout) {
  const char type = layout.type == '%' ? 'f' : layout.type;
  if (type == '\0' && layout.precision < 0) return format_number(magnitude);
  check_precision(layout);
  const auto precision = static_cast<int>(layout.precision < 0 ? 6 : layout.precision);
  const std::string pattern = std::string(layout.alternate ? "%#.*" : "%.*") + (type ? type : 'g');
  char buffer[1024];
  std::snprintf(buffer, sizeof(buffer), pattern.c_str(), precision, magnitude * (layout.type == '%' ? 100 : 1));
  return std::string(buffer) + (layout.type == '%' ? "%" : "");
}

std::string integer_digits(unsigned __int128 magnitude, int base, bool upper) {
  std::string digits;
  do {
    const int digit = static_cast<int>(magnitude % static_cast<unsigned>(base));
    digits += static_cast<char>(digit < 10 ? '0' + digit : (upper ? 'A' : 'a') + digit - 10);
    magnitude /= static_cast<unsigned>(base);
  } while (magnitude > 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

/// A number as sign and digits.
void add_number(TextBuilder& out, const std::string& sign, const std::string& digits, const Layout& layout) {
  const auto size = static_cast<int64_t>(sign.size() + digits.size());
  const int64_t missing = std::max<int64_t>(layout.width - size, 0);
  const int64_t before = layout.align == '<' ? 0 : layout.align == '^' ? missing / 2 : missing;
  if (layout.align == '=') out.add(sign);
  out.repeat(layout.fill, before);
  if (layout.align != '=') out.add(sign);
  out.add(digits);
  out.repeat(layout.fill, missing - before);
}

std::string sign_of(bool negative, const Layout& layout) {
  return negative ? "-" : layout.sign == '-' ? "" : std::string(1, layout.sign);
}

void format_float(TextBuilder& out, double d, const Layout& layout) {
  std::string digits = float_digits(std::fabs(d), layout);
  if (layout.grouped) digits = group_thousands(std::move(digits));
  add_number(out, sign_of(std::signbit(d) && !std::isnan(d), layout), digits, layout);
}

void format_int(TextBuilder& out, Integer i, const Layout& layout) {
  const auto magnitude = i < 0 ? -static_cast<unsigned __int128>(i) : static_cast<unsigned __int128>(i);
  const char lower = static_cast<char>(layout.type | 32);
  const int base = lower == 'x' ? 16 : layout.type == 'o' ? 8 : layout.type == 'b' ? 2 : 10;
  std::string digits = integer_digits(magnitude, base, layout.type == 'X');
  check_precision(layout);
  const auto missing = layout.precision - static_cast<int64_t>(digits.size());
  if (missing > 0) digits.insert(0, static_cast<size_t>(missing), '0');
  if (layout.grouped) digits = group_thousands(std::move(digits));
  std::string sign = sign_of(i < 0, layout);
  if (layout.alternate && base != 10) sign += std::string("0") + layout.type;
  add_number(out, sign, digits, layout);
}

void format_text(TextBuilder& out, const Text& text, const Layout& layout) {
  const size_t end =
      layout.precision < 0 ? text.size() : byte_offset(text.view(), static_cast<size_t>(layout.precision));
  const auto size = static_cast<int64_t>(count_code_points(text.view().substr(0, end)));
  const int64_t missing = std::max<int64_t>(layout.width - size, 0);
  const int64_t before = layout.align == '>' ? missing : layout.align == '^' ? missing / 2 : 0;
  out.repeat(layout.fill, before);
  out.add(text, 0, end);
  out.repeat(layout.fill, missing - before);
}

/// One value as "%..." wants it.
void format_value(TextBuilder& out, const Value& value, Layout layout) {
  const char type = layout.type;
  if (std::string_view("sra").find(type) != std::string_view::npos) {
    TextBuilder shown(out.heap());
    type == 's' ? print(shown, value) : repr(shown, value);
    return format_text(out, shown.take(), layout);
  }
  if (layout.align == '\0') layout.align = '>';
  if (std::string_view("diuxXo").find(type) != std::string_view::npos) {
    check_defined(value);
    if (value.is(Kind::number) && std::string_view("diu").find(type) != std::string_view::npos) {
      return format_int(out, truncate(value.number()), layout);
    }
    if (!value.is_integral()) fail_type(type, value);
    return format_int(out, value.integer(), layout);
  }
  if (std::string_view("eEfFgG").find(type) != std::string_view::npos) {
    check_defined(value);
    if (!value.is_numeric()) fail_type(type, value);
    return format_float(out, value.number(), layout);
  }
  if (type != 'c') throw Failure("unsupported format character '" + escaped(std::string(1, type)) + "'");
  Text character;
  if (value.is_integral()) {
    if (value.integer() < 0 || value.integer() > 0x10FFFF) throw Failure("%c arg not in range(0x110000)");
    append_code_point(character.bytes, static_cast<uint32_t>(value.integer()));
  } else if (value.is_text() && count_code_points(value.text().view()) == 1) {
    character = value.text();
  } else {
    throw Failure("%c requires int or char");
  }
  format_text(out, character, layout);
}

/// Reads the fields of a "%" format one after the other.
class PercentFormatter {
 public:
  PercentFormatter(Heap& heap, const Text& text, const Value& arguments)
      : heap_(heap), text_(text), arguments_(arguments), out_(heap) {
    is_tuple_ = arguments.is_sequence(SequenceKind::tuple) || arguments.is_sequence(SequenceKind::group);
  }

  Value run() {
    const std::string& bytes = text_.bytes;
    for (size_t done = 0;;) {
      at_ = std::min(bytes.find('%', done), bytes.size());
      out_.add(text_, done, at_);
      if (at_ == bytes.size()) break;
      ++at_;
      run_field();
      done = at_;
    }
    const bool all_used = used_ == (is_tuple_ ? arguments_.sequence().items.size() : 1);
    if (!all_used && !by_name_ && !arguments_.is(Kind::dict)) {
      throw Failure("not all arguments converted during string formatting");
    }
    return heap_.text(out_.take());
  }

 private:
  char peek() const {
    if (at_ >= text_.size()) throw Failure("incomplete format");
    return text_.bytes[at_];
  }

  const Value& next_argument() {
    if (used_ >= (is_tuple_ ? arguments_.sequence().items.size() : 1)) {
      throw Failure("not enough arguments for format string");
    }
    return is_tuple_ ? arguments_.sequence().items[used_++] : (++used_, arguments_);
  }

  int64_t read_number() {
    if (peek() == '*') {
      ++at_;
      return to_int64(next_argument(), "*");
    }
    int64_t number = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_) number = std::min<int64_t>(number * 10 + (peek() - '0'), INT32_MAX);
    return number;
  }

  void run_field() {
    const Value* named = nullptr;
    if (peek() == '(') {
      const size_t end = text_.bytes.find(')', at_);
      if (end == std::string::npos) throw Failure("incomplete format key");
      if (!arguments_.is(Kind::dict)) throw Failure("format requires a mapping");
      const std::string key = text_.bytes.substr(at_ + 1, end - at_ - 1);
      named = arguments_.dict().find(heap_, key);
      if (!named) throw Failure("format needs the key '" + escaped(key) + "'");
      by_name_ = true;
      at_ = end + 1;
    }
    Layout layout;
    for (;; ++at_) {
      const char flag = peek();
      if (flag == '-') {
        layout.align = '<';
      } else if (flag == '+' || (flag == ' ' && layout.sign == '-')) {
        layout.sign = flag;
      } else if (flag == '#') {
        layout.alternate = true;
      } else if (flag == '0') {
        zero_ = true;
      } else if (flag != ' ') {
        break;
      }
    }
    layout.width = read_number();
    if (layout.width < 0) {
      layout.align = '<';
      layout.width = layout.width == INT64_MIN ? INT64_MAX : -layout.width;
    }
    if (peek() == '.') {
      ++at_;
      layout.precision = std::max<int64_t>(read_number(), 0);
    }
    layout.type = peek();
    ++at_;
    if (layout.type == '%') return out_.add("%");
    if (std::exchange(zero_, false) && layout.align == '\0' &&
        std::string_view("diuxXoeEfFgG").find(layout.type) != std::string_view::npos) {
      layout.fill = "0";
      layout.align = '=';
    }
    const bool textual = std::string_view("srac").find(layout.type) != std::string_view::npos;
    if (textual && layout.align == '\0') layout.align = '>';
    format_value(out_, named ? *named : next_argument(), layout);
  }

  Heap& heap_;
  const Text& text_;
  const Value& arguments_;
  TextBuilder out_;
  size_t at_ = 0, used_ = 0;
  bool is_tuple_ = false, by_name_ = false, zero_ = false;
};

/// [[fill]align][sign][#][0][width][,][.precision][type]
Layout parse_layout(std::string_view spec) {
  Layout layout;
  size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  size_t after_fill = 0;
  if (!spec.empty()) next_code_point(spec, after_fill);
  if (after_fill > 0 && after_fill < spec.size() && is_align(spec[after_fill])) {
    layout.fill = spec.substr(0, after_fill);
    layout.align = spec[after_fill];
    at = after_fill + 1;
  } else if (!spec.empty() && is_align(spec[0])) {
    layout.align = spec[at++];
  }
  const auto peek = [&] { return at < spec.size() ? spec[at] : '\0'; };
  if (peek() == '+' || peek() == '-' || peek() == ' ') layout.sign = spec[at++];
  if (peek() == '#') layout.alternate = ++at > 0;
  if (peek() == '0') {
    ++at;
    if (layout.align == '\0') {
      layout.fill = "0";
      layout.align = '=';
    }
  }
  const auto number = [&](int64_t absent) {
    const auto [end, error] = std::from_chars(spec.data() + at, spec.data() + spec.size(), absent);
    if (error == std::errc::result_out_of_range) throw Failure("too many digits in a format");
    at = static_cast<size_t>(end - spec.data());
    return absent;
  };
  if (peek() >= '0' && peek() <= '9') layout.width = number(0);
  if (peek() == ',') layout.grouped = ++at > 0;
  if (peek() == '.') {
    ++at;
    if (peek() < '0' || peek() > '9') throw Failure("format specifier missing precision");
    layout.precision = number(-1);
  }
  if (at < spec.size()) layout.type = spec[at++];
  if (at < spec.size()) throw Failure("invalid format specifier '" + escaped(std::string(spec), 40) + "'");
  return layout;
}

void format_field(TextBuilder& out, const Value& value, Layout layout, bool empty_spec) {
  if (!value.is_text() && !value.is_numeric()) {
    if (!empty_spec)
      throw Failure(std::string("unsupported format string for a value of type '") + type_name(value) + "'");
    return print(out, value);
  }
  if (empty_spec) return print(out, value);
  if (value.is_text()) {
    if (layout.type != '\0' && layout.type != 's') fail_type(layout.type, value);
    if (layout.align == '=') layout.align = '<';
    return format_text(out, value.text(), layout);
  }
  if (layout.align == '\0') layout.align = '>';
  const bool float_type =
      layout.type != '\0' && std::string_view("eEfFgG%").find(layout.type) != std::string_view::npos;
  if (value.is(Kind::number) || float_type) {
    if (layout.type != '\0' && !float_type) fail_type(layout.type, value);
    return format_float(out, value.number(), layout);
  }
  if (layout.type != '\0' && std::string_view("dxXob").find(layout.type) == std::string_view::npos)
    fail_type(layout.type, value);
  format_int(out, value.integer(), layout);
}

/// The argument that the field names: nothing (the next one), a number or a name.
const Value& find_argument(const Arguments& arguments, std::string_view name, size_t& next) {
  if (name.find_first_of(".[") != std::string_view::npos) throw Failure("format fields may not reach into values");
  size_t index = next;
  const bool numbered = !name.empty() && name[0] >= '0' && name[0] <= '9';
  if (numbered) {
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
    if (error != std::errc() || end != name.data() + name.size()) throw Failure("malformed format field");
  }
  if (name.empty()) ++next;
  if (name.empty() || numbered) {
    if (index >= arguments.positional.size()) throw Failure("format field has no argument");
    return arguments.positional[index];
  }
  for (const auto& [known, value] : arguments.named) {
    if (known == name) return value;
  }
  throw Failure("format field '" + escaped(std::string(name), 40) + "' has no argument");
}

}  // namespace

Value format_percent(Heap& heap, const Text& text, const Value& arguments) {
  return PercentFormatter(heap, text, arguments).run();
}

Value format_braces(Interpreter& interpreter, const Text& text, const Arguments& arguments) {
  Heap& heap = interpreter.heap();
  TextBuilder out(heap);
  const std::string_view bytes = text.view();
  size_t done = 0, next = 0;
  for (size_t at = bytes.find_first_of("{}"); at != std::string_view::npos; at = bytes.find_first_of("{}", done)) {
    out.add(text, done, at);
    if (at + 1 < bytes.size() && bytes[at + 1] == bytes[at]) {
      out.add(text, at, at + 1);
      done = at + 2;
      continue;
    }
    if (bytes[at] == '}') throw Failure("single '}' encountered in format string");
    const size_t end = bytes.find('}', at);
    if (end == std::string_view::npos) throw Failure("expected '}' before end of string");
    const std::string_view field = bytes.substr(at + 1, end - at - 1);
    if (field.find('{') != std::string_view::npos) throw Failure("format fields may not contain fields");
    const size_t colon = std::min(field.find(':'), field.size());
    std::string_view name = field.substr(0, colon);
    const std::string_view spec = colon < field.size() ? field.substr(colon + 1) : std::string_view();
    const bool as_repr = name.ends_with("!r"), as_text = name.ends_with("!s");
    if (as_repr || as_text) name.remove_suffix(2);
    Value value = find_argument(arguments, name, next);
    if (as_repr || as_text) {
      TextBuilder shown(heap);
      as_repr ? repr(shown, value) : print(shown, value);
      value = heap.text(shown.take());
    }
    format_field(out, value, parse_layout(spec), spec.empty());
    done = end + 1;
  }
  out.add(text, done, text.size());
  return heap.text(out.take());
}

}  // namespace infer::jinja
