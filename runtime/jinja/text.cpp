// Marks, code points and character classes of jinja::Text. Character properties come from utf8proc; the few places
// where Python differs from the simple case mapping (the sharp s) are spelled out here.
#include "runtime/jinja/text.h"

#include <utf8proc.h>

#include <algorithm>

namespace infer::jinja {

Text Text::from_user(std::string_view given) {
  Text text(given);
  text.mark(0, given.size());
  return text;
}

void Text::mark(size_t begin, size_t end) {
  if (begin >= end) return;
  if (!user.empty() && user.back().end >= begin) {
    user.back().end = std::max(user.back().end, end);
  } else {
    user.push_back({begin, end});
  }
}

void Text::append(const Text& other, size_t begin, size_t end) {
  const size_t base = bytes.size();
  bytes.append(other.bytes, begin, end - begin);
  auto first = std::lower_bound(other.user.begin(), other.user.end(), begin,
                                [](const Span& span, size_t at) { return span.end <= at; });
  for (; first != other.user.end() && first->begin < end; ++first) {
    mark(base + std::max(first->begin, begin) - begin, base + std::min(first->end, end) - begin);
  }
}

Text Text::slice(size_t begin, size_t end) const {
  Text part;
  part.append(*this, begin, end);
  return part;
}

bool MarkCursor::at(size_t byte) {
  while (next_ < user_.size() && user_[next_].end <= byte) ++next_;
  return next_ < user_.size() && user_[next_].begin <= byte;
}

uint32_t next_code_point(std::string_view bytes, size_t& at) {
  const auto byte = static_cast<unsigned char>(bytes[at]);
  if (byte < 0x80) {
    ++at;
    return byte;
  }
  utf8proc_int32_t code_point = 0;
  const auto* data = reinterpret_cast<const utf8proc_uint8_t*>(bytes.data());
  const utf8proc_ssize_t left = static_cast<utf8proc_ssize_t>(std::min<size_t>(bytes.size() - at, 4));
  const utf8proc_ssize_t used = utf8proc_iterate(data + at, left, &code_point);
  if (used <= 0) {
    ++at;
    return 0xDC00u + byte;
  }
  at += static_cast<size_t>(used);
  return static_cast<uint32_t>(code_point);
}

void append_code_point(std::string& bytes, uint32_t c) {
  if (c >= 0xDC80 && c <= 0xDCFF) {
    bytes += static_cast<char>(c - 0xDC00);  // an invalid byte on its way back
  } else if (c < 0x80) {
    bytes += static_cast<char>(c);
  } else if (c < 0x800) {
    bytes += static_cast<char>(0xC0 | (c >> 6));
    bytes += static_cast<char>(0x80 | (c & 63));
  } else if (c < 0x10000) {
    bytes += static_cast<char>(0xE0 | (c >> 12));
    bytes += static_cast<char>(0x80 | ((c >> 6) & 63));
    bytes += static_cast<char>(0x80 | (c & 63));
  } else {
    bytes += static_cast<char>(0xF0 | (c >> 18));
    bytes += static_cast<char>(0x80 | ((c >> 12) & 63));
    bytes += static_cast<char>(0x80 | ((c >> 6) & 63));
    bytes += static_cast<char>(0x80 | (c & 63));
  }
}

bool is_ascii(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

size_t count_code_points(std::string_view bytes) {
  if (is_ascii(bytes)) return bytes.size();
  size_t count = 0;
  for (size_t at = 0; at < bytes.size(); ++count) next_code_point(bytes, at);
  return count;
}

size_t byte_offset(std::string_view bytes, size_t code_points) {
  size_t at = 0;
  for (; at < bytes.size() && code_points > 0; --code_points) next_code_point(bytes, at);
  return at;
}

bool is_space(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

static utf8proc_category_t category(uint32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_printable(uint32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7F;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

bool is_letter(uint32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(uint32_t c) { return c < 0x80 ? c >= '0' && c <= '9' : category(c) == UTF8PROC_CATEGORY_ND; }

bool is_cased_upper(uint32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z';
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LT;
}

bool is_cased_lower(uint32_t c) { return c < 0x80 ? c >= 'a' && c <= 'z' : category(c) == UTF8PROC_CATEGORY_LL; }

void append_upper(std::string& bytes, uint32_t c) {
  if (c == 0xDF) {
    bytes += "SS";
    return;
  }
  const bool invalid = c >= 0xDC80 && c <= 0xDCFF;
  append_code_point(bytes, invalid ? c : static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
}

void append_lower(std::string& bytes, uint32_t c) {
  const bool invalid = c >= 0xDC80 && c <= 0xDCFF;
  append_code_point(bytes, invalid ? c : static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

Span strip_space(std::string_view bytes, bool left, bool right) {
  size_t begin = 0, end = bytes.size();
  while (left && begin < end) {
    size_t after = begin;
    if (!is_space(next_code_point(bytes, after))) break;
    begin = after;
  }
  while (right && end > begin) {
    size_t start = end - 1;
    while (start > begin && end - start < 4 && (static_cast<unsigned char>(bytes[start]) & 0xC0) == 0x80) --start;
    size_t after = start;
    if (!is_space(next_code_point(bytes, after)) || after != end) break;
    end = start;
  }
  return {begin, end};
}

}  // namespace infer::jinja
