// The typed getters of Checkpoint and the text of a Value. Every message has one form: path, key, found, allowed.
#include "models/checkpoint.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

namespace infer {
namespace {

template <class T>
std::string number_text(T value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  return std::string(buffer, end);
}

std::string float_text(double value, bool is_f32) {
  return is_f32 ? number_text(static_cast<float>(value)) : number_text(value);
}

struct ValuePrinter {
  bool is_f32;
  size_t max_items;
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(int64_t v) const { return number_text(v); }
  std::string operator()(uint64_t v) const { return number_text(v); }
  std::string operator()(double v) const { return float_text(v, is_f32); }
  std::string operator()(const std::string& v) const { return '"' + escaped(v) + '"'; }
  template <class T>
  std::string operator()(const std::vector<T>& items) const {
    std::string out = "[";
    for (size_t i = 0; i < items.size() && i < max_items; ++i) {
      if (i) out += ", ";
      out += (*this)(static_cast<T>(items[i]));
    }
    if (items.size() > max_items) out += (max_items ? ", ... " : "... ") + number_text(items.size()) + " in all";
    return out + "]";
  }
};

std::string range_text(const char* what, const std::string& min, const std::string& max) {
  return std::string(what) + " in " + min + ".." + max;
}

std::string int_range(int64_t min, int64_t max) { return range_text("an integer", number_text(min), number_text(max)); }

std::string float_range(double min, double max) {
  if (std::isinf(min) && std::isinf(max)) return "a finite float";
  return range_text("a float", number_text(min), number_text(max));
}

std::string found_text(const Value& value) { return value.type + " " + value.text(); }

std::string count_text(int64_t count) { return count < 0 ? "" : " of " + number_text(count) + " elements"; }

}  // namespace

int64_t HostTensor::n_elements() const {
  int64_t n = 1;
  for (const int64_t d : dims) n *= d;  // readers have checked that the product fits
  return n;
}

const std::byte* HostTensor::slice(int64_t i) const {
  if (!parts.empty()) return parts[static_cast<size_t>(i)];
  return data + static_cast<size_t>(i) * (bytes / static_cast<size_t>(dims[0]));
}

void HostTensor::copy_rows(int64_t first, int64_t n, std::byte* to) const {
  if (make) return make(first, n, to);
  const int64_t rows = n_elements() / dims.back();
  const size_t row = bytes / static_cast<size_t>(rows);
  if (parts.empty()) {
    std::memcpy(to, data + static_cast<size_t>(first) * row, static_cast<size_t>(n) * row);
    return;
  }
  const int64_t to_part = rows / static_cast<int64_t>(parts.size());
  for (int64_t r = first; r < first + n; ++r, to += row)
    std::memcpy(to, parts[static_cast<size_t>(r / to_part)] + static_cast<size_t>(r % to_part) * row, row);
}

std::string Value::text(size_t max_items) const {
  return std::visit(ValuePrinter{type.ends_with("f32"), max_items}, data);
}

const HostTensor* Checkpoint::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors[it->second];
}

void Checkpoint::index_tensors() {
  tensor_index_.clear();
  for (size_t i = 0; i < tensors.size(); ++i)
    if (!tensor_index_.emplace(tensors[i].name, i).second)
      refuse("tensor " + tensors[i].name, "the name appears twice", {}, "each tensor once");
}

void Checkpoint::refuse(std::string_view what, const std::string& message, const std::string& found,
                        const std::string& allowed) const {
  throw Error(ErrorKind::bad_file, escaped(path, 8192) + ": " + escaped(std::string(what)), message, found, allowed);
}

std::optional<int64_t> Checkpoint::find_int(std::string_view key, int64_t min, int64_t max) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return std::nullopt;
  const Value& value = it->second;
  if (const auto* i = std::get_if<int64_t>(&value.data)) {
    if (*i < min || *i > max) refuse(key, "value out of range", value.text(), int_range(min, max));
    return *i;
  }
  if (std::holds_alternative<uint64_t>(value.data))
    refuse(key, "value out of range", value.text(), int_range(min, max));
  refuse(key, "wrong type", found_text(value), int_range(min, max));
}

int64_t Checkpoint::get_int(std::string_view key, int64_t min, int64_t max) const {
  if (const auto value = find_int(key, min, max)) return *value;
  refuse(key, "required key is missing", {}, int_range(min, max));
}

std::optional<double> Checkpoint::find_float(std::string_view key, double min, double max) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return std::nullopt;
  const Value& value = it->second;
  const auto* d = std::get_if<double>(&value.data);
  if (!d) refuse(key, "wrong type", found_text(value), float_range(min, max));
  if (!std::isfinite(*d) || *d < min || *d > max)
    refuse(key, "value out of range", value.text(), float_range(min, max));
  return *d;
}

double Checkpoint::get_float(std::string_view key, double min, double max) const {
  if (const auto value = find_float(key, min, max)) return *value;
  refuse(key, "required key is missing", {}, float_range(min, max));
}

std::optional<std::string> Checkpoint::find_string(std::string_view key) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return std::nullopt;
  if (const auto* s = std::get_if<std::string>(&it->second.data)) return *s;
  refuse(key, "wrong type", found_text(it->second), "a string");
}

std::string Checkpoint::get_string(std::string_view key) const {
  if (auto value = find_string(key)) return *std::move(value);
  refuse(key, "required key is missing", {}, "a string");
}

std::optional<bool> Checkpoint::find_bool(std::string_view key) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return std::nullopt;
  if (const auto* b = std::get_if<bool>(&it->second.data)) return *b;
  refuse(key, "wrong type", found_text(it->second), "a bool");
}

const std::vector<std::string>* Checkpoint::find_strings(std::string_view key, int64_t count) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return nullptr;
  const auto* items = std::get_if<std::vector<std::string>>(&it->second.data);
  if (!items) refuse(key, "wrong type", found_text(it->second), "an array of strings" + count_text(count));
  if (count >= 0 && items->size() != static_cast<size_t>(count))
    refuse(key, "wrong length", number_text(items->size()) + " elements", number_text(count) + " elements");
  return items;
}

std::optional<std::vector<int64_t>> Checkpoint::find_ints(std::string_view key, int64_t count, int64_t min,
                                                          int64_t max) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return std::nullopt;
  const Value& value = it->second;
  std::vector<int64_t> out;
  if (const auto* ints = std::get_if<std::vector<int64_t>>(&value.data)) {
    out = *ints;
  } else if (const auto* bools = std::get_if<std::vector<bool>>(&value.data)) {
    out.assign(bools->begin(), bools->end());
  } else if (std::holds_alternative<std::vector<uint64_t>>(value.data)) {  // holds at least one value above 2^63
    refuse(key, "element out of range", found_text(value), int_range(min, max));
  } else {
    refuse(key, "wrong type", found_text(value), "an array of integers" + count_text(count));
  }
  if (count >= 0 && out.size() != static_cast<size_t>(count))
    refuse(key, "wrong length", number_text(out.size()) + " elements", number_text(count) + " elements");
  for (size_t i = 0; i < out.size(); ++i)
    if (out[i] < min || out[i] > max)
      refuse(key, "element " + number_text(i) + " out of range", number_text(out[i]), int_range(min, max));
  return out;
}

std::optional<std::vector<double>> Checkpoint::find_floats(std::string_view key, int64_t count) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return std::nullopt;
  const auto* items = std::get_if<std::vector<double>>(&it->second.data);
  if (!items) refuse(key, "wrong type", found_text(it->second), "an array of floats" + count_text(count));
  if (count >= 0 && items->size() != static_cast<size_t>(count))
    refuse(key, "wrong length", number_text(items->size()) + " elements", number_text(count) + " elements");
  for (size_t i = 0; i < items->size(); ++i)
    if (!std::isfinite((*items)[i]))
      refuse(key, "element " + number_text(i) + " is not finite", number_text((*items)[i]), "finite floats");
  return *items;
}

}  // namespace infer
