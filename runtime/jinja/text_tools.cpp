// Case, stripping, replacing, joining and padding; all of them keep the marks of their pieces.
#include "runtime/jinja/text_tools.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "infer/error.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/print.h"

namespace infer::jinja {

/// Replaces each code point by what `map` appends; a marked character gives marked ones.
template <class Map>
static Text map_characters(Heap& heap, const Text& text, Map map) {
  heap.work(text.size() * 4);
  TextBuilder out(heap);
  MarkCursor marks(text);
  std::string mapped;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = next_code_point(text.view(), at);
    mapped.clear();
    map(mapped, c);
    out.add(mapped, marks.at(begin));
  }
  return out.take();
}

Text upper(Heap& heap, const Text& text) { return map_characters(heap, text, append_upper); }
Text lower(Heap& heap, const Text& text) { return map_characters(heap, text, append_lower); }

Text capitalize(Heap& heap, const Text& text) {
  bool first = true;
  return map_characters(heap, text, [&first](std::string& out, uint32_t c) {
    first ? append_upper(out, c) : append_lower(out, c);
    first = false;
  });
}

Text strip(Heap& heap, const Text& text, const Value* characters, bool left, bool right) {
  heap.work(text.size());
  Span kept;
  if (!characters || characters->is_none()) {
    kept = strip_space(text.view(), left, right);
  } else {
    if (!characters->is_text()) throw Failure("strip arg must be None or str");
    std::vector<uint32_t> set;
    const std::string_view listed = characters->text().view();
    for (size_t at = 0; at < listed.size();) set.push_back(next_code_point(listed, at));
    heap.work(set.size() * 16);
    std::vector<std::pair<size_t, bool>> ends;  // where each code point starts, and whether it is to go
    const auto goes = [&](uint32_t c) { return std::find(set.begin(), set.end(), c) != set.end(); };
    kept = {0, text.size()};
    while (left && kept.begin < kept.end) {
      size_t after = kept.begin;
      heap.work(set.size());
      if (!goes(next_code_point(text.view(), after))) break;
      kept.begin = after;
    }
    while (right && kept.end > kept.begin) {
      size_t start = kept.end - 1;
      while (start > kept.begin && (static_cast<unsigned char>(text.bytes[start]) & 0xC0) == 0x80) --start;
      size_t after = start;
      heap.work(set.size());
      if (!goes(next_code_point(text.view(), after)) || after != kept.end) break;
      kept.end = start;
    }
  }
  return text.slice(kept.begin, kept.end);
}

Text replace(Heap& heap, const Text& text, const Text& from, const Text& to, int64_t count) {
  TextBuilder out(heap);
  heap.work(text.size());
  size_t done = 0, at = 0;
  for (count = std::max<int64_t>(count, -1); count != 0;) {
    size_t found = text.bytes.find(from.bytes, at);
    if (found == std::string::npos) break;
    heap.work(8);
    out.add(text, done, found);
    out.add(to);
    done = found + from.size();
    at = done;
    if (from.size() == 0) {  // between all characters
      if (at >= text.size()) break;
      next_code_point(text.view(), at);
    }
    --count;
  }
  out.add(text, done, text.size());
  return out.take();
}

Text join(Heap& heap, const Text& separator, const Values& items) {
  TextBuilder out(heap);
  for (size_t i = 0; i < items.size(); ++i) {
    heap.work(8);
    if (i > 0) out.add(separator);
    print(out, items[i]);
  }
  return out.take();
}

static bool is_line_end(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

Values split_lines(Heap& heap, const Text& text, bool keep_ends) {
  heap.work(text.size());
  Values lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const uint32_t c = next_code_point(text.view(), at);
    if (!is_line_end(c)) continue;
    if (c == '\r' && at < text.size() && text.bytes[at] == '\n') ++at;
    heap.check_items(lines.size() + 1);
    lines.push_back(heap.text(text.slice(begin, keep_ends ? at : end)));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(heap.text(text.slice(begin, text.size())));
  return lines;
}

Text pad(Heap& heap, const Text& text, int64_t width, std::string_view fill, Align align) {
  const auto size = static_cast<int64_t>(count_code_points(text.view()));
  const int64_t missing = std::max<int64_t>(width - size, 0);
  const int64_t odd = missing & width & 1;  // Python puts the odd blank on the left for odd widths
  const int64_t left = align == Align::left ? 0 : align == Align::right ? missing : missing / 2 + odd;
  TextBuilder out(heap);
  out.repeat(fill, left);
  out.add(text);
  out.repeat(fill, missing - left);
  return out.take();
}

Text escape_html(Heap& heap, const Text& text) {
  TextBuilder out(heap);
  MarkCursor marks(text);
  size_t done = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text.bytes[at];
    const char* entity = c == '&'    ? "&amp;"
                         : c == '<'  ? "&lt;"
                         : c == '>'  ? "&gt;"
                         : c == '"'  ? "&#34;"
                         : c == '\'' ? "&#39;"
                                     : nullptr;
    if (!entity) continue;
    out.add(text, done, at);
    out.add(entity, marks.at(at));
    done = at + 1;
  }
  out.add(text, done, text.size());
  return out.take();
}

/// White space and single underscores between digits taken out, as Python allows them in numbers.
static std::optional<std::string> plain_number(std::string_view text) {
  const Span span = strip_space(text, true, true);
  std::string plain;
  for (size_t i = span.begin; i < span.end; ++i) {
    const auto is_word = [&](size_t at) {
      return at > span.begin && at < span.end && isalnum(static_cast<unsigned char>(text[at]));
    };
    if (text[i] != '_') {
      plain += text[i];
    } else if (i == span.begin || !isalnum(static_cast<unsigned char>(text[i - 1])) || !is_word(i + 1)) {
      return std::nullopt;
    }
  }
  return plain;
}

std::optional<Integer> parse_integer(std::string_view text, int base) {
  if (base != 0 && (base < 2 || base > 36)) throw Failure("int() base must be >= 2 and <= 36, or 0");
  const auto plain = plain_number(text);
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  for (const auto& [letter, value] : {std::pair('x', 16), std::pair('o', 8), std::pair('b', 2)}) {
    if (digits.size() < 2 || digits[0] != '0' || (digits[1] | 32) != letter) continue;
    if (base == 0) base = value;
    if (base == value) digits.remove_prefix(2);
  }
  if (base == 0) base = 10;
  if (digits.empty()) return std::nullopt;
  Integer result = 0;
  for (const char c : digits) {
    const int value = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'z' ? (c | 32) - 'a' + 10 : 99;
    if (value >= base) return std::nullopt;
    if (__builtin_mul_overflow(result, base, &result) || __builtin_sub_overflow(result, value, &result)) {
      throw Failure("integer too large: '" + escaped(std::string(text), 60) + "'");
    }
  }
  if (!negative && __builtin_sub_overflow(static_cast<Integer>(0), result, &result)) throw Failure("integer too large");
  return result;
}

std::optional<double> parse_number(std::string_view text) {
  auto plain = plain_number(text);
  if (!plain || plain->empty()) return std::nullopt;
  std::string_view digits = *plain;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  if (digits.starts_with("+") || digits.find_first_of("xX(") != std::string_view::npos) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return digits.find("e-") != std::string_view::npos ? 0.0 : HUGE_VAL;
  if (error != std::errc()) return std::nullopt;
  return value;
}

}  // namespace infer::jinja
