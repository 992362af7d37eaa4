// Well-formedness follows the table of the standard byte for byte: no overlong forms, no surrogates, nothing past
// U+10FFFF.
#include "runtime/utf8.h"

#include <utf8proc.h>

#include <cstring>

namespace infer {
namespace {

struct Lead {
  size_t length;      ///< 0: no character begins with this byte
  uint8_t low, high;  ///< what the second byte may be
};

Lead lead_of(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xC2 || b > 0xF4) return {0, 0, 0};
  if (b < 0xE0) return {2, 0x80, 0xBF};
  if (b < 0xF0)
    return {3, static_cast<uint8_t>(b == 0xE0 ? 0xA0 : 0x80), static_cast<uint8_t>(b == 0xED ? 0x9F : 0xBF)};
  return {4, static_cast<uint8_t>(b == 0xF0 ? 0x90 : 0x80), static_cast<uint8_t>(b == 0xF4 ? 0x8F : 0xBF)};
}

// How many bytes at text[at] agree with one character; `whole` is that character's length.
size_t agreeing(std::string_view text, size_t at, size_t& whole) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[at]));
  whole = lead.length;
  if (lead.length <= 1) return lead.length;
  size_t n = 1;
  for (; n < lead.length && at + n < text.size(); ++n) {
    const auto b = static_cast<uint8_t>(text[at + n]);
    if (b < (n == 1 ? lead.low : 0x80) || b > (n == 1 ? lead.high : 0xBF)) break;
  }
  return n;
}

}  // namespace

namespace {

// Length of the character that ends right before text[end], or 0.
size_t length_before(std::string_view text, size_t end) {
  for (size_t n = 1; n <= 4 && n <= end; ++n)
    if (utf8_length(text, end - n) == n) return n;
  return 0;
}

bool is_blank(uint32_t c) {
  return c == ' ' || (c >= 0x09 && c <= 0x0D) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_word(uint32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

}  // namespace

size_t blank_length(std::string_view text, size_t at) {
  const size_t n = at < text.size() ? utf8_length(text, at) : 0;
  return n > 0 && is_blank(utf8_decode(text, at, n)) ? n : 0;
}

size_t blank_length_before(std::string_view text, size_t end) {
  const size_t n = length_before(text, end);
  return n > 0 && is_blank(utf8_decode(text, end - n, n)) ? n : 0;
}

bool word_begins(std::string_view text, size_t at) {
  const size_t n = at < text.size() ? utf8_length(text, at) : 0;
  return n > 0 && is_word(utf8_decode(text, at, n));
}

bool word_ends(std::string_view text, size_t end) {
  const size_t n = length_before(text, end);
  return n > 0 && is_word(utf8_decode(text, end - n, n));
}

size_t utf8_length(std::string_view text, size_t at) {
  size_t whole = 0;
  const size_t n = agreeing(text, at, whole);
  return n == whole ? n : 0;
}

uint32_t utf8_decode(std::string_view text, size_t at, size_t length) {
  const auto byte = [&](size_t k) { return static_cast<uint32_t>(static_cast<uint8_t>(text[at + k])); };
  switch (length) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3:
      return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  }
}

void utf8_append(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
            static_cast<char>(0x80 | (c & 0x3F))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
            static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
  }
}

size_t utf8_first_bad(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t eight = 0;
    if (i + 8 <= text.size()) {
      std::memcpy(&eight, text.data() + i, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const size_t n = utf8_length(text, i);
    if (n == 0) return i;
    i += n;
  }
  return i;
}

std::string utf8_repaired(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (true) {
    const size_t bad = utf8_first_bad(text);
    out += text.substr(0, bad);
    if (bad == text.size()) return out;
    out += kReplacement;
    text.remove_prefix(bad + 1);
  }
}

std::string Utf8Stream::feed(std::string_view bytes) {
  std::string joined;
  if (!kept_.empty()) {
    joined = kept_ + std::string(bytes);
    bytes = joined;
    kept_.clear();
  }
  std::string out;
  out.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    size_t whole = 0;
    const size_t n = agreeing(bytes, i, whole);
    if (n == whole && n > 0) {
      out += bytes.substr(i, n);
    } else if (n > 0 && i + n == bytes.size()) {
      kept_ = bytes.substr(i);
    } else {
      out += kReplacement;
    }
    i += n > 0 ? n : 1;
  }
  return out;
}

std::string Utf8Stream::flush() {
  if (kept_.empty()) return {};
  kept_.clear();
  return std::string(kReplacement);
}

}  // namespace infer
