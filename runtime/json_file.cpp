// Parsing through nlohmann's event interface, so that depth, number of values and duplicate keys are checked while the
// tree grows, before memory is spent on it.
#include "runtime/json_file.h"

#include <sys/stat.h>

#include <cmath>

#include "infer/error.h"
#include "runtime/mapped_file.h"

namespace infer {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxValues = size_t{1} << 24;

class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(Json& root, const std::string& where) : where_(where), root_(root) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool v) override { return add(v); }
  bool number_integer(number_integer_t v) override { return add(v); }
  bool number_unsigned(number_unsigned_t v) override { return add(v); }
  bool number_float(number_float_t v, const string_t&) override { return add(v); }
  bool string(string_t& v) override { return add(std::move(v)); }
  bool binary(binary_t&) override { return false; }  // JSON text has none
  bool start_object(size_t) override { return open(Json::value_t::object); }
  bool start_array(size_t) override { return open(Json::value_t::array); }
  bool end_object() override { return open_.pop_back(), true; }
  bool end_array() override { return open_.pop_back(), true; }
  bool key(string_t& name) override {
    const auto [at, is_new] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
    if (!is_new) refuse("a key occurs twice", '"' + escaped(name) + '"');
    slot_ = &at->second;
    return true;
  }
  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception& error) override {
    refuse("not JSON: " + escaped(error.what(), 300), "byte " + std::to_string(at));
  }

 private:
  [[noreturn]] void refuse(const std::string& message, const std::string& found, const std::string& allowed = {}) {
    throw Error(ErrorKind::bad_file, where_, message, found, allowed);
  }
  Json* place(Json value) {
    if (++n_values_ > kMaxValues) refuse("too many values", "", std::to_string(kMaxValues));
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) return &open_.back()->get_ref<Json::array_t&>().emplace_back(std::move(value));
    *slot_ = std::move(value);
    return slot_;
  }
  bool add(Json value) { return place(std::move(value)), true; }
  bool open(Json::value_t type) {
    if (open_.size() == kMaxDepth) refuse("nested too deeply", "", std::to_string(kMaxDepth) + " levels");
    open_.push_back(place(Json(type)));
    return true;
  }

  std::string where_;
  Json& root_;
  std::vector<Json*> open_;  // arrays and objects that are not closed; each is the last element of the one before it
  Json* slot_ = nullptr;     // of the key read last
  size_t n_values_ = 0;
};

std::string range_text(int64_t min, int64_t max) {
  return "an integer in " + std::to_string(min) + ".." + std::to_string(max);
}

}  // namespace

bool is_file(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

std::string read_small_file(const std::string& path, size_t max_bytes) {
  const MappedFile file(path);
  if (file.size() > max_bytes)
    throw Error(ErrorKind::bad_file, shown_path(path), "too long", std::to_string(file.size()) + " bytes",
                "at most " + std::to_string(max_bytes));
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

Json parse_json(std::string_view text, const std::string& where) {
  Json root;
  Builder builder(root, where);
  if (!Json::sax_parse(text, &builder)) throw Error(ErrorKind::bad_file, where, "not JSON");
  return root;
}

std::string json_text(const Json& value) {
  if (value.is_structured()) return std::string(value.is_array() ? "an array" : "an object");
  return escaped(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

JsonObject::JsonObject(const Json& value, std::string where) : value_(&value), where_(std::move(where)) {
  if (!value.is_object()) throw Error(ErrorKind::bad_file, where_, "wrong type", json_text(value), "an object");
}

const Json* JsonObject::find(const std::string& key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

void JsonObject::refuse(const std::string& key, const std::string& message, const std::string& found,
                        const std::string& allowed) const {
  throw Error(ErrorKind::bad_file, where(key), message, found, allowed);
}

void JsonObject::wrong_type(const std::string& key, const Json& found, const char* allowed) const {
  refuse(key, "wrong type", json_text(found), allowed);
}

void JsonObject::missing(const std::string& key) const { refuse(key, "required key is missing"); }

std::optional<int64_t> JsonObject::find_int(const std::string& key, int64_t min, int64_t max) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number_integer()) refuse(key, "wrong type", json_text(*value), range_text(min, max));
  const bool huge = value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX;
  const int64_t number = huge ? INT64_MAX : value->get<int64_t>();
  if (huge || number < min || number > max) refuse(key, "value out of range", json_text(*value), range_text(min, max));
  return number;
}

std::optional<double> JsonObject::find_number(const std::string& key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number()) wrong_type(key, *value, "a number");
  const auto number = value->get<double>();
  if (!std::isfinite(number)) refuse(key, "not a finite number", json_text(*value));
  return number;
}

std::optional<bool> JsonObject::find_bool(const std::string& key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) wrong_type(key, *value, "true or false");
  return value->get<bool>();
}

std::optional<std::string> JsonObject::find_string(const std::string& key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string()) wrong_type(key, *value, "a string");
  return value->get<std::string>();
}

std::optional<JsonObject> JsonObject::find_object(const std::string& key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  return JsonObject(*value, where(key));
}

const Json::array_t* JsonObject::find_array(const std::string& key) const {
  const Json* value = find(key);
  if (!value) return nullptr;
  if (!value->is_array()) wrong_type(key, *value, "an array");
  return &value->get_ref<const Json::array_t&>();
}

int64_t JsonObject::get_int(const std::string& key, int64_t min, int64_t max) const {
  if (const auto value = find_int(key, min, max)) return *value;
  missing(key);
}

double JsonObject::get_number(const std::string& key) const {
  if (const auto value = find_number(key)) return *value;
  missing(key);
}

std::string JsonObject::get_string(const std::string& key) const {
  if (auto value = find_string(key)) return *std::move(value);
  missing(key);
}

}  // namespace infer
