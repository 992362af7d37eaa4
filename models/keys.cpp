// See keys.h.
#include "models/keys.h"

#include "models/config.h"

namespace infer {
namespace {

bool is_array(const Value& value) {
  return !std::holds_alternative<bool>(value.data) && !std::holds_alternative<int64_t>(value.data) &&
         !std::holds_alternative<uint64_t>(value.data) && !std::holds_alternative<double>(value.data) &&
         !std::holds_alternative<std::string>(value.data);
}

}  // namespace

std::optional<int64_t> Keys::per_layer(const char* key, int64_t n_layers, int64_t min, int64_t max) const {
  const auto it = checkpoint_.metadata.find(name(key));
  if (it == checkpoint_.metadata.end()) return std::nullopt;
  if (!is_array(it->second)) return checkpoint_.find_int(name(key), min, max);
  const std::vector<int64_t> values = *checkpoint_.find_ints(name(key), n_layers, min, max);
  for (int64_t value : values) {
    if (value != values[0]) {
      checkpoint_.refuse(name(key), "layers of different shapes are not supported", it->second.text(),
                         "the same number for all layers");
    }
  }
  return values.at(0);
}

std::vector<bool> Keys::layer_flags(const char* key, int64_t n_layers, int64_t absent) const {
  const auto it = checkpoint_.metadata.find(name(key));
  if (it != checkpoint_.metadata.end() && is_array(it->second)) {
    const std::vector<int64_t> flags = *checkpoint_.find_ints(name(key), n_layers, 0, 1);
    return {flags.begin(), flags.end()};
  }
  const int64_t period = integer(key, 1, kMaxLayers, absent);
  std::vector<bool> out;
  for (int64_t i = 0; i < n_layers; ++i) out.push_back(period == 0 || (i + 1) % period != 0);
  return out;
}

}  // namespace infer
