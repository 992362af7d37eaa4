// GGUF's key-value pairs. Values are copied into the Checkpoint's types; arrays may not nest (no known key does), so
// there is no recursion. A count is compared with the bytes that are left before anything is reserved for it.
#include <array>

#include "runtime/gguf_parts.h"

namespace infer {
namespace {

enum : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64, kTypes };

struct ValueType {
  const char* name;
  uint64_t bytes;  // the least an element takes in the file
};
constexpr std::array<ValueType, kTypes> kValueTypes{{{"u8", 1},
                                                     {"i8", 1},
                                                     {"u16", 2},
                                                     {"i16", 2},
                                                     {"u32", 4},
                                                     {"i32", 4},
                                                     {"f32", 4},
                                                     {"bool", 1},
                                                     {"string", 8},
                                                     {"array", 12},
                                                     {"u64", 8},
                                                     {"i64", 8},
                                                     {"f64", 8}}};
constexpr uint64_t kMinPairBytes = 8 + 1 + 4 + 1;  // length and one byte of key, type, one byte of value
constexpr const char* kKnownTypes = "0 (u8) to 12 (f64)";

bool read_bool(GgufCursor& cursor) {
  const auto byte = cursor.number<uint8_t>("bool");
  if (byte > 1) cursor.refuse("invalid bool", std::to_string(byte), "0 or 1");
  return byte == 1;
}

Value::Data read_u64(GgufCursor& cursor) {
  const auto n = cursor.number<uint64_t>("u64");
  if (n > static_cast<uint64_t>(INT64_MAX)) return n;
  return static_cast<int64_t>(n);
}

template <class T>
Value::Data read_int(GgufCursor& cursor) {
  return static_cast<int64_t>(cursor.number<T>("integer"));
}

Value::Data read_scalar(GgufCursor& cursor, uint32_t type) {
  switch (type) {
    case kU8:
      return read_int<uint8_t>(cursor);
    case kI8:
      return read_int<int8_t>(cursor);
    case kU16:
      return read_int<uint16_t>(cursor);
    case kI16:
      return read_int<int16_t>(cursor);
    case kU32:
      return read_int<uint32_t>(cursor);
    case kI32:
      return read_int<int32_t>(cursor);
    case kI64:
      return read_int<int64_t>(cursor);
    case kU64:
      return read_u64(cursor);
    case kF32:
      return static_cast<double>(cursor.number<float>("f32"));
    case kF64:
      return cursor.number<double>("f64");
    case kBool:
      return read_bool(cursor);
    default:
      return std::string(cursor.string("string", kMaxStringBytes));  // kString; the caller knows the rest
  }
}

// The elements of an array lie one after the other: one check for all, then copies.
template <class T, class Out>
Value::Data read_numbers(GgufCursor& cursor, size_t count) {
  const std::byte* at = cursor.take(count * sizeof(T), "array");  // the product was bounded by expect()
  std::vector<Out> out(count);
  for (size_t i = 0; i < count; ++i) {
    T element;
    std::memcpy(&element, at + i * sizeof(T), sizeof(T));
    out[i] = static_cast<Out>(element);
  }
  return out;
}

Value::Data read_u64_numbers(GgufCursor& cursor, size_t count) {
  Value::Data wide = read_numbers<uint64_t, uint64_t>(cursor, count);
  const auto& numbers = std::get<std::vector<uint64_t>>(wide);
  for (const uint64_t n : numbers)
    if (n > static_cast<uint64_t>(INT64_MAX)) return wide;
  return std::vector<int64_t>(numbers.begin(), numbers.end());
}

Value::Data read_elements(GgufCursor& cursor, uint32_t type, size_t count) {
  switch (type) {
    case kU8:
      return read_numbers<uint8_t, int64_t>(cursor, count);
    case kI8:
      return read_numbers<int8_t, int64_t>(cursor, count);
    case kU16:
      return read_numbers<uint16_t, int64_t>(cursor, count);
    case kI16:
      return read_numbers<int16_t, int64_t>(cursor, count);
    case kU32:
      return read_numbers<uint32_t, int64_t>(cursor, count);
    case kI32:
      return read_numbers<int32_t, int64_t>(cursor, count);
    case kI64:
      return read_numbers<int64_t, int64_t>(cursor, count);
    case kU64:
      return read_u64_numbers(cursor, count);
    case kF32:
      return read_numbers<float, double>(cursor, count);
    case kF64:
      return read_numbers<double, double>(cursor, count);
    case kBool: {
      std::vector<bool> out(count);
      for (size_t i = 0; i < count; ++i) out[i] = read_bool(cursor);
      return out;
    }
    default: {
      std::vector<std::string> out(count);
      for (std::string& s : out) s = cursor.string("string of the array", kMaxStringBytes);
      return out;
    }
  }
}

Value read_value(GgufCursor& cursor) {
  const auto type = cursor.number<uint32_t>("value type");
  if (type >= kTypes) cursor.refuse("unknown value type", std::to_string(type), kKnownTypes);
  if (type != kArray) return {read_scalar(cursor, type), kValueTypes[type].name};

  const auto element = cursor.number<uint32_t>("element type");
  if (element >= kTypes) cursor.refuse("unknown element type of an array", std::to_string(element), kKnownTypes);
  if (element == kArray) cursor.refuse("an array of arrays", "nested arrays", "arrays of numbers, bools or strings");
  const auto count = cursor.number<uint64_t>("array length");
  cursor.expect(count, kValueTypes[element].bytes, "the array length");
  if (count > kMaxArrayElements)
    cursor.refuse("the array is too long", std::to_string(count) + " elements",
                  "at most " + std::to_string(kMaxArrayElements));
  return {read_elements(cursor, element, static_cast<size_t>(count)),
          std::string("array of ") + kValueTypes[element].name};
}

}  // namespace

bool is_plain_name(std::string_view name) {
  for (const char c : name)
    if (c < 0x20 || c > 0x7e) return false;
  return true;
}

Metadata read_gguf_metadata(GgufCursor& cursor, uint64_t count) {
  cursor.expect(count, kMinPairBytes, "the number of keys");
  Metadata metadata;
  for (uint64_t i = 0; i < count; ++i) {
    cursor.set_subject("key number " + std::to_string(i + 1) + " of " + std::to_string(count));
    const std::string_view key = cursor.string("key", kMaxKeyBytes);
    if (key.empty()) cursor.refuse("the key is empty", {}, "1 to 65535 bytes");
    cursor.set_subject("key " + std::string(key));
    if (!is_plain_name(key)) cursor.refuse("the key holds bytes that are not printable ASCII");
    const auto [at, is_new] = metadata.try_emplace(std::string(key));
    if (!is_new) cursor.refuse("the key appears twice", {}, "each key once");
    at->second = read_value(cursor);
  }
  cursor.set_subject({});
  return metadata;
}

uint64_t gguf_alignment(const GgufCursor& cursor, const Metadata& metadata) {
  const auto it = metadata.find("general.alignment");
  if (it == metadata.end()) return 32;
  const Value& value = it->second;
  const auto* n = std::get_if<int64_t>(&value.data);
  const bool power_of_two = n && *n > 0 && std::has_single_bit(static_cast<uint64_t>(*n));
  // Signed types are refused as the reference reader does; 1, 2 and 4 it takes, but the format asks for multiples of 8.
  if (!power_of_two || *n < 8 || *n > static_cast<int64_t>(kMaxAlignment) ||
      (value.type != "u32" && value.type != "u64"))
    throw Error(ErrorKind::bad_file, cursor.path() + ": key general.alignment", "invalid alignment",
                value.type + " " + value.text(), "u32, a power of two in 8..65536");
  return static_cast<uint64_t>(*n);
}

}  // namespace infer
