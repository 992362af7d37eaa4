// infer::Error and the escaping of text that comes from files.
#include "infer/error.h"

namespace infer {
namespace {

// Length of the well-formed UTF-8 sequence that begins at text[i], or 0 (Unicode 15, table 3-7).
size_t utf8_length(const std::string& text, size_t i) {
  auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
  auto tail = [&](size_t k) { return (byte(k) & 0xC0u) == 0x80u; };
  const unsigned b0 = byte(0), b1 = byte(1);
  if (b0 < 0x80) return 1;
  if (b0 >= 0xC2 && b0 <= 0xDF) return tail(1) ? 2 : 0;
  if (b0 >= 0xE0 && b0 <= 0xEF) {
    const unsigned low = b0 == 0xE0 ? 0xA0 : 0x80, high = b0 == 0xED ? 0x9F : 0xBF;
    return b1 >= low && b1 <= high && tail(2) ? 3 : 0;
  }
  if (b0 >= 0xF0 && b0 <= 0xF4) {
    const unsigned low = b0 == 0xF0 ? 0x90 : 0x80, high = b0 == 0xF4 ? 0x8F : 0xBF;
    return b1 >= low && b1 <= high && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

std::string line(const std::string& where, const std::string& message, const std::string& found,
                 const std::string& allowed) {
  std::string out = where.empty() ? message : where + ": " + message;
  if (!found.empty()) out += ", found " + found;
  if (!allowed.empty()) out += ", allowed " + allowed;
  return out;
}

}  // namespace

std::string escaped(const std::string& text, size_t max_bytes) {
  static const char hex[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    const size_t n = utf8_length(text, i);
    const auto c = static_cast<unsigned char>(text[i]);
    // U+0080..U+009F (C2 80..9F) are control characters too: some terminals obey them.
    const bool control = c < 32 || c == 127 || (n == 2 && c == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0);
    if (n == 0 || control) {
      for (size_t k = 0; k < (n ? n : 1); ++k) {
        const auto b = static_cast<unsigned char>(text[i + k]);
        out += {'\\', 'x', hex[b >> 4], hex[b & 15]};
      }
      i += n ? n : 1;
    } else {
      out.append(text, i, n);
      i += n;
    }
  }
  return out;
}

Error::Error(ErrorKind kind, std::string where, const std::string& message, std::string found, std::string allowed)
    : std::runtime_error(line(where, message, found, allowed)),
      kind_(kind),
      where_(std::move(where)),
      found_(std::move(found)),
      allowed_(std::move(allowed)) {}

}  // namespace infer
