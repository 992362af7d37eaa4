// Metadata keys below an architecture's prefix: the getters of Checkpoint with "<arch>." in front, and the two forms in
// which files give something that may differ between layers. For readers of configs only.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

class Keys {
 public:
  Keys(const Checkpoint& checkpoint, const std::string& arch) : checkpoint_(checkpoint), prefix_(arch + ".") {}

  std::string name(const char* key) const { return prefix_ + key; }
  bool has(const char* key) const { return checkpoint_.has(name(key)); }
  int64_t require(const char* key, int64_t min, int64_t max) const { return checkpoint_.get_int(name(key), min, max); }
  int64_t integer(const char* key, int64_t min, int64_t max, int64_t absent) const {
    return checkpoint_.find_int(name(key), min, max).value_or(absent);
  }
  double number(const char* key, double min, double max, double absent) const {
    return checkpoint_.find_float(name(key), min, max).value_or(absent);
  }

  /// A number that a file may also give as one per layer; layers that differ from each other are refused.
  std::optional<int64_t> per_layer(const char* key, int64_t n_layers, int64_t min, int64_t max) const;

  /// A flag per layer: an array of them, or a number n for "all but every n-th", which starts with n - 1 layers that
  /// have it. `absent`: n of a file that is silent; 0: all layers have it.
  std::vector<bool> layer_flags(const char* key, int64_t n_layers, int64_t absent) const;

 private:
  const Checkpoint& checkpoint_;
  std::string prefix_;
};

}  // namespace infer
