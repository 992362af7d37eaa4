#include "runtime/gguf_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <string_view>

namespace infer {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie");

constexpr std::string_view kTypeNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};
constexpr std::string_view kArrayOf = "array of ";

uint32_t number_of(std::string_view type) {
  return static_cast<uint32_t>(std::find(std::begin(kTypeNames), std::end(kTypeNames), type) - std::begin(kTypeNames));
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_string(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out += text;
}

// A number in the width of its type: what reading widened.
template <class T>
void put_as(std::string& out, std::string_view type, T value) {
  if (type == "f32") return put(out, static_cast<float>(value));
  if (type == "f64") return put(out, static_cast<double>(value));
  const auto bits = static_cast<uint64_t>(value);
  const size_t bytes = type.ends_with("64") ? 8 : type.ends_with("32") ? 4 : type.ends_with("16") ? 2 : 1;
  out.append(reinterpret_cast<const char*>(&bits), bytes);
}

struct ElementWriter {
  std::string& out;
  std::string_view type;
  void operator()(bool value) const { put<uint8_t>(out, value); }
  void operator()(const std::string& text) const { put_string(out, text); }
  void operator()(int64_t value) const { put_as(out, type, value); }
  void operator()(uint64_t value) const { put_as(out, type, value); }
  void operator()(double value) const { put_as(out, type, value); }
  template <class T>
  void operator()(const std::vector<T>& list) const {
    put<uint64_t>(out, list.size());
    for (const auto& element : list) (*this)(static_cast<T>(element));
  }
};

void put_pair(std::string& out, const std::string& key, const Value& value) {
  put_string(out, key);
  std::string_view type = value.type;
  if (type.starts_with(kArrayOf)) {
    put<uint32_t>(out, number_of("array"));
    type.remove_prefix(kArrayOf.size());
  }
  put<uint32_t>(out, number_of(type));
  std::visit(ElementWriter{out, type}, value.data);
}

void pad(std::string& out, size_t alignment) { out.resize((out.size() + alignment - 1) / alignment * alignment); }

}  // namespace

size_t alignment_of(const Checkpoint& checkpoint) {
  return static_cast<size_t>(checkpoint.find_int("general.alignment", 8, 65536).value_or(32));
}

std::string gguf_head(const std::map<std::string, Value, std::less<>>& metadata, const std::vector<HostTensor>& tensors,
                      size_t alignment) {
  std::string out = "GGUF";
  put<uint32_t>(out, 3);
  put<uint64_t>(out, tensors.size());
  put<uint64_t>(out, metadata.size());
  // What is general comes first, where people and programs look for it.
  for (const bool general : {true, false})
    for (const auto& [key, value] : metadata)
      if (key.starts_with("general.") == general) put_pair(out, key, value);
  uint64_t offset = 0;
  for (const HostTensor& tensor : tensors) {
    put_string(out, tensor.name);
    put<uint32_t>(out, static_cast<uint32_t>(tensor.dims.size()));
    for (auto dim = tensor.dims.rbegin(); dim != tensor.dims.rend(); ++dim)
      put<uint64_t>(out, static_cast<uint64_t>(*dim));
    put<uint32_t>(out, static_cast<uint32_t>(tensor.dtype));
    put<uint64_t>(out, offset);
    offset += (tensor.bytes + alignment - 1) / alignment * alignment;
  }
  pad(out, alignment);
  return out;
}

}  // namespace infer
