// Writes GGUF files, good ones and, through raw pairs and byte marks, bad ones. Independent of the reader on purpose:
// the layout is written down a second time here, so that both must be right for a test to pass.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/dtype.h"

namespace infer::test {

/// GGUF's numbers for value types.
enum GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// The bytes of a number as they lie in a file.
template <class T>
std::string le(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

/// A length-prefixed string.
std::string gguf_string(const std::string& text);

struct TensorSpec {
  std::string name;
  uint32_t type = 0;
  std::vector<int64_t> dims;  ///< row-major; the writer reverses them
  std::string data;
};

/// A finished file and where its parts lie: "version", "n_tensors", "n_keys", "key K length|name|type|value",
/// "tensor T length|name|n_dims|dim 0|type|offset|data|end", "infos end", "data".
struct GgufImage {
  std::string bytes;
  std::map<std::string, size_t> marks;

  size_t at(const std::string& mark) const { return marks.at(mark); }
  /// A copy in which `value` replaces the bytes at a mark.
  template <class T>
  std::string patched(const std::string& mark, T value) const {
    std::string out = bytes;
    return out.replace(at(mark), sizeof value, le(value));
  }
};

class GgufWriter {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  ///< used for the layout; written as a key only by set_alignment()

  /// Adds a key, or replaces it where it stands.
  void raw(const std::string& key, uint32_t type, const std::string& bytes);
  void number(const std::string& key, uint32_t value) { raw(key, u32, le(value)); }
  void real(const std::string& key, float value) { raw(key, f32, le(value)); }
  void flag(const std::string& key, bool value) { raw(key, boolean, le<uint8_t>(value)); }
  void text(const std::string& key, const std::string& value) { raw(key, string, gguf_string(value)); }
  void texts(const std::string& key, const std::vector<std::string>& values);
  template <class T>
  void numbers(const std::string& key, uint32_t element_type, const std::vector<T>& values) {
    std::string bytes = le(element_type) + le<uint64_t>(values.size());
    for (const T v : values) bytes += le(v);
    raw(key, array, bytes);
  }
  void set_alignment(uint32_t value) { number("general.alignment", static_cast<uint32_t>(alignment = value)); }
  void remove(const std::string& key);

  void tensor(const std::string& name, DType type, std::vector<int64_t> dims, std::string data);
  TensorSpec& find_tensor(const std::string& name);
  void remove_tensor(const std::string& name);

  std::string bytes() const;
  GgufImage image() const;
  void write(const std::string& path) const;

  struct Pair {
    std::string key;
    uint32_t type;
    std::string bytes;
  };
  std::vector<Pair> pairs;
  std::vector<TensorSpec> tensors;

 private:
  std::string lay_out(std::map<std::string, size_t>* marks) const;
};

void write_bytes(const std::string& path, const std::string& bytes);

}  // namespace infer::test
