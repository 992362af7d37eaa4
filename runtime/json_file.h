// JSON files of a model folder, read with suspicion: size, depth and number of values are bounded, a key that occurs
// twice is refused, and typed getters report every fault in one form: path, key, found, allowed. Knows no key by name.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace infer {

using Json = nlohmann::json;

/// Limits of ours.
inline constexpr size_t kMaxConfigBytes = size_t{64} << 20, kMaxTokenizerBytes = size_t{512} << 20;

/// Whether a path can be opened as a file.
bool is_file(const std::string& path);
/// The bytes of a file of at most `max_bytes`. Throws Error(bad_file) for a longer one.
std::string read_small_file(const std::string& path, size_t max_bytes = kMaxConfigBytes);
/// Throws Error(bad_file) for what is not one JSON value within the limits; `where` begins the message.
Json parse_json(std::string_view text, const std::string& where);

/// One object of a JSON file and its place, for messages. A key whose value is null counts as absent.
class JsonObject {
 public:
  /// Throws Error(bad_file) when `value` is no object. `value` must outlive this.
  JsonObject(const Json& value, std::string where);

  const Json& json() const { return *value_; }
  const std::string& where() const { return where_; }
  std::string where(std::string_view key) const { return where_ + ": " + std::string(key); }
  const Json* find(const std::string& key) const;  ///< null when absent or null
  bool has(const std::string& key) const { return find(key) != nullptr; }

  std::optional<int64_t> find_int(const std::string& key, int64_t min, int64_t max) const;
  std::optional<double> find_number(const std::string& key) const;  ///< finite
  std::optional<bool> find_bool(const std::string& key) const;
  std::optional<std::string> find_string(const std::string& key) const;
  std::optional<JsonObject> find_object(const std::string& key) const;
  const Json::array_t* find_array(const std::string& key) const;  ///< null when absent

  int64_t get_int(const std::string& key, int64_t min, int64_t max) const;
  double get_number(const std::string& key) const;
  std::string get_string(const std::string& key) const;

  [[noreturn]] void refuse(const std::string& key, const std::string& message, const std::string& found = {},
                           const std::string& allowed = {}) const;

 private:
  [[noreturn]] void wrong_type(const std::string& key, const Json& found, const char* allowed) const;
  [[noreturn]] void missing(const std::string& key) const;

  const Json* value_;
  std::string where_;
};

/// A value on one line for messages, escaped and cut.
std::string json_text(const Json& value);

}  // namespace infer
