// config.json and generation_config.json of a Hugging Face folder, translated to the metadata keys that GGUF files have
// and models/ reads; so a family has one reader for both kinds of files. What a model type, a rope type, an activation
// or a quantisation asks for and no row here knows is refused by name.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "runtime/hf_names.h"
#include "runtime/hf_quant.h"
#include "runtime/json_file.h"

namespace infer {

using Metadata = std::map<std::string, Value, std::less<>>;

/// Collects keys below one architecture's prefix.
class HfKeys {
 public:
  HfKeys(std::string arch, Metadata& out) : prefix_(std::move(arch) + "."), out_(out) {}
  void integer(const std::string& key, int64_t value) { put(key, {value, "i64"}); }
  void number(const std::string& key, double value) { put(key, {value, "f64"}); }
  void boolean(const std::string& key, bool value) { put(key, {value, "bool"}); }
  void string(const std::string& key, std::string value) { put(key, {std::move(value), "string"}); }
  void flags(const std::string& key, std::vector<bool> value) { put(key, {std::move(value), "array of bool"}); }

 private:
  void put(const std::string& key, Value value) { out_.insert_or_assign(prefix_ + key, std::move(value)); }
  std::string prefix_;
  Metadata& out_;
};

/// A vector that config.json holds and GGUF files have as a tensor.
struct HfVector {
  std::string name;
  std::vector<float> values;
};

struct HfConfig {
  Metadata metadata;
  const NameTable* names = nullptr;
  RenameOptions rename;
  HfQuant quant;
  std::vector<HfVector> vectors;
};

/// Throws Error(bad_file) naming path, key, found and allowed.
HfConfig translate_config(const JsonObject& config);

/// The rope of a config in either form: rope_theta and rope_scaling, or rope_parameters. `absent_theta` where neither
/// says.
void translate_rope(const JsonObject& config, int64_t head_dim, double absent_theta, HfKeys& keys, HfConfig& out);

/// Sampling defaults as general.sampling.* keys. An empty object gives none.
void translate_generation(const JsonObject& generation, Metadata& out);

/// Token ids that end an answer: eos_token_id, a number or a list.
std::vector<int64_t> read_eos_ids(const JsonObject& config);

}  // namespace infer
