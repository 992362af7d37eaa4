// A bounds-checked walk over the bytes of one GGUF file: every read compares what it wants with what is left, never a
// sum of positions with a size. Knows nothing of keys or tensors beyond the name it puts into its errors.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "infer/error.h"

namespace infer {

static_assert(std::endian::native == std::endian::little, "files are little-endian and numbers are copied as they lie");

class GgufCursor {
 public:
  /// `shown_path` is the path as messages print it.
  GgufCursor(std::string shown_path, std::span<const std::byte> bytes) : path_(std::move(shown_path)), bytes_(bytes) {}

  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }
  const std::string& path() const { return path_; }
  std::span<const std::byte> rest() const { return bytes_.subspan(position_); }

  /// What is being read ("key general.name", "tensor 12"), for errors. Text from the file is escaped when printed.
  void set_subject(std::string subject) { subject_ = std::move(subject); }

  template <class T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  /// A length-prefixed string of at most `max_bytes`; a view into the file.
  std::string_view string(const char* what, uint64_t max_bytes) {
    const auto length = number<uint64_t>(what);
    if (length > left()) refuse(std::string(what) + " runs past the end of the file", bytes_text(length), left_text());
    if (length > max_bytes) refuse(std::string(what) + " is too long", bytes_text(length), at_most(max_bytes));
    return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
  }

  /// `count` elements of `size` bytes each, at least; refuses a count that the rest of the file cannot hold.
  void expect(uint64_t count, uint64_t size, const char* what) const {
    if (count > left() / size)
      refuse(std::string(what) + " is larger than the rest of the file can hold", std::to_string(count),
             "at most " + std::to_string(left() / size));
  }

  const std::byte* take(uint64_t n, const char* what) {
    if (n > left()) refuse("the file ends inside the " + std::string(what), left_text(), "at least " + bytes_text(n));
    const std::byte* at = bytes_.data() + position_;
    position_ += static_cast<size_t>(n);
    return at;
  }

  [[noreturn]] void refuse(const std::string& message, const std::string& found = {},
                           const std::string& allowed = {}) const {
    const std::string where = subject_.empty() ? path_ : path_ + ": " + escaped(subject_, 160);
    throw Error(ErrorKind::bad_file, where, message, found, allowed);
  }

  static std::string bytes_text(uint64_t n) { return std::to_string(n) + (n == 1 ? " byte" : " bytes"); }

 private:
  static std::string at_most(uint64_t n) { return "at most " + bytes_text(n); }
  std::string left_text() const { return "the " + bytes_text(left()) + " that are left"; }

  std::string path_, subject_;
  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

}  // namespace infer
