// One reader for each quant_method.
#include "runtime/hf_quant.h"

#include <algorithm>

#include "infer/error.h"

namespace infer {
namespace {

constexpr int64_t kMaxGroup = INT32_MAX;

std::string quoted(const std::string& text) { return '"' + escaped(text) + '"'; }

/// A string that must be one of `known`; absent, it is the first of them.
std::string choice(const JsonObject& object, const std::string& key, const std::vector<std::string>& known,
                   const std::string& what) {
  const std::string found = object.find_string(key).value_or(known[0]);
  if (std::find(known.begin(), known.end(), found) != known.end()) return found;
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  object.refuse(key, "unsupported " + what, quoted(found), names);
}

int read_bits(const JsonObject& object, const std::string& key, const std::vector<int>& known) {
  const auto bits = static_cast<int>(object.get_int(key, 1, 64));
  if (std::find(known.begin(), known.end(), bits) != known.end()) return bits;
  std::string names;
  for (const int n : known) names += (names.empty() ? "" : " or ") + std::to_string(n);
  object.refuse(key, "unsupported number of bits", std::to_string(bits), names);
}

/// Columns to a group; -1 means all of a row, which is 0 here.
int64_t read_group(const JsonObject& object) {
  const int64_t group = object.get_int("group_size", -1, kMaxGroup);
  if (group == 0) object.refuse("group_size", "value out of range", "0", "-1 or 1 and more");
  return std::max<int64_t>(group, 0);
}

/// Refuses a setting that changes what the tensors mean, unless it is empty or false.
void require_unset(const JsonObject& object, const std::string& key) {
  const Json* value = object.find(key);
  const bool unset = !value || (value->is_structured() && value->empty()) || (value->is_boolean() && !*value);
  if (!unset) object.refuse(key, "not supported", json_text(*value), "nothing");
}

/// Names of modules; what is in them shows in the tensors.
void check_names(const JsonObject& object, const std::string& key) {
  const Json::array_t* names = object.find_array(key);
  if (!names) return;
  for (const Json& name : *names)
    if (!name.is_string()) object.refuse(key, "wrong type", json_text(name), "names of modules");
}

/// [rows, columns] of a block.
void read_block(const JsonObject& object, const std::string& key, HfQuant& out) {
  const Json::array_t* sizes = object.find_array(key);
  if (!sizes || sizes->size() != 2) object.refuse(key, "unusable", sizes ? "an array" : "nothing", "two sizes");
  for (const Json& size : *sizes)
    if (!size.is_number_unsigned() || size.get<uint64_t>() < 1 || size.get<uint64_t>() > uint64_t{kMaxGroup})
      object.refuse(key, "unusable size", json_text(size), "1 to " + std::to_string(kMaxGroup));
  out.scale_rows = (*sizes)[0].get<int64_t>();
  out.scale_cols = (*sizes)[1].get<int64_t>();
}

HfQuant read_awq(const JsonObject& q) {
  HfQuant out;
  out.method = QuantMethod::awq;
  out.bits = read_bits(q, "bits", {4});
  out.scale_rows = 1;
  out.scale_cols = read_group(q);
  choice(q, "version", {"gemm", "GEMM"}, "layout of AWQ");
  if (!q.find_bool("zero_point").value_or(true)) q.refuse("zero_point", "AWQ without zero points", "false", "true");
  check_names(q, "modules_to_not_convert");
  return out;
}

HfQuant read_gptq(const JsonObject& q) {
  HfQuant out;
  out.method = QuantMethod::gptq;
  out.bits = read_bits(q, "bits", {4, 8});
  out.scale_rows = 1;
  out.scale_cols = read_group(q);
  out.symmetric = q.find_bool("sym").value_or(false);
  out.any_order = q.find_bool("desc_act").value_or(false);
  out.zero_bias = choice(q, "checkpoint_format", {"gptq", "gptq_v2"}, "version of GPTQ") == "gptq";
  choice(q, "pack_dtype", {"int32"}, "word");
  for (const char* key : {"dynamic", "is_marlin_format", "rotation"}) require_unset(q, key);
  check_names(q, "modules_to_not_convert");
  return out;
}

/// What transformers calls "fp8": numbers of 8 bits with a scale to a block, or to a matrix.
HfQuant read_fp8(const JsonObject& q) {
  HfQuant out;
  out.method = QuantMethod::floats;
  out.bits = 8;
  out.symmetric = true;
  choice(q, "fmt", {"e4m3"}, "number format");
  choice(q, "activation_scheme", {"dynamic", "static"}, "scheme");
  choice(q, "scale_fmt", {"float", "ue8m0"}, "format of scales");
  if (q.has("weight_block_size")) read_block(q, "weight_block_size", out);
  check_names(q, "modules_to_not_convert");
  check_names(q, "ignored_layers");
  return out;
}

/// The one entry of config_groups.
JsonObject only_group(const JsonObject& q) {
  const auto groups = q.find_object("config_groups");
  if (!groups) q.refuse("config_groups", "required key is missing");
  if (groups->json().size() != 1)
    q.refuse("config_groups", "modules quantised in different ways are not supported",
             std::to_string(groups->json().size()) + " groups", "one group");
  const auto item = groups->json().items().begin();
  return {item.value(), groups->where(escaped(item.key()))};
}

void read_strategy(const JsonObject& weights, HfQuant& out) {
  const std::string strategy = choice(weights, "strategy", {"tensor", "channel", "group", "block"}, "strategy");
  if (strategy == "channel") out.scale_rows = 1;
  if (strategy == "block") read_block(weights, "block_structure", out);
  if (strategy != "group") return;
  out.scale_rows = 1;
  out.scale_cols = weights.get_int("group_size", 1, kMaxGroup);
}

HfQuant read_compressed(const JsonObject& q) {
  struct Layout {
    const char *name, *type;
    std::vector<int> bits;
    QuantMethod method;
  };
  static const Layout kLayouts[] = {{"pack-quantized", "int", {4, 8}, QuantMethod::packed_ints},
                                    {"int-quantized", "int", {8}, QuantMethod::ints},
                                    {"float-quantized", "float", {8}, QuantMethod::floats}};
  const JsonObject group = only_group(q);
  q.get_string("format");
  const std::string format = choice(q, "format", {kLayouts[0].name, kLayouts[1].name, kLayouts[2].name}, "format");
  if (group.has("format")) choice(group, "format", {format}, "format of a group");
  choice(q, "quantization_status", {"compressed", "frozen"}, "status");
  require_unset(q, "transform_config");
  if (const auto sparsity = q.find_object("sparsity_config")) choice(*sparsity, "format", {"dense"}, "sparse format");
  check_names(q, "ignore");
  check_names(group, "targets");
  const auto weights = group.find_object("weights");
  if (!weights) group.refuse("weights", "required key is missing");
  const Layout& layout =
      *std::find_if(std::begin(kLayouts), std::end(kLayouts), [&](const Layout& l) { return format == l.name; });
  HfQuant out;
  out.method = layout.method;
  weights->get_string("type");
  choice(*weights, "type", {layout.type}, "type of numbers for " + format);
  out.bits = read_bits(*weights, "num_bits", layout.bits);
  out.symmetric = weights->find_bool("symmetric").value_or(true);
  if (!out.symmetric && out.method == QuantMethod::floats)
    weights->refuse("symmetric", "floats with zero points are not supported", "false", "true");
  if (weights->has("dynamic") && weights->find_bool("dynamic") != false)
    weights->refuse("dynamic", "weights are not there yet", "true", "false");
  weights->get_string("strategy");
  read_strategy(*weights, out);
  // "group" puts the columns of a group apart and says where they are; the others only chose an order for the rounding.
  out.any_order = choice(*weights, "actorder", {"weight", "static", "group", "dynamic"}, "order") == "group";
  return out;
}

HfQuant read_method(const JsonObject& q, const std::string& method) {
  if (method == "awq") return read_awq(q);
  if (method == "gptq") return read_gptq(q);
  if (method == "fp8") return read_fp8(q);
  if (method == "compressed-tensors") return read_compressed(q);
  q.refuse("quant_method", "quantised weights of this kind are not supported", quoted(method),
           "awq, gptq, fp8, compressed-tensors; weights in F32, F16 or BF16; or a GGUF file of the model");
}

}  // namespace

HfQuant read_quantisation(const JsonObject& config, std::string_view model_type) {
  const auto quantisation = config.find_object("quantization_config");
  const bool is_gpt_oss = model_type == "gpt_oss";
  if (!quantisation) {
    if (is_gpt_oss) config.refuse("quantization_config", "required key is missing", "", "quant_method \"mxfp4\"");
    return {};
  }
  const std::string method = quantisation->get_string("quant_method");
  if (!is_gpt_oss) return read_method(*quantisation, method);
  HfQuant out;
  out.method = QuantMethod::mxfp4;
  if (method == "mxfp4") return out;
  quantisation->refuse("quant_method", "quantised weights of this kind are not supported", quoted(method), "mxfp4");
}

HfQuant with_quantize_config(const HfQuant& quant, const JsonObject& quantize_config) {
  // Older files do not name the method, and are GPTQ's.
  const std::string method = quantize_config.find_string("quant_method").value_or("gptq");
  const HfQuant other = read_method(quantize_config, method);
  if (quant.method == QuantMethod::none || quant == other) return other;
  throw Error(ErrorKind::bad_file, quantize_config.where(), "says otherwise than quantization_config of config.json",
              method, "the same method, bits, group_size, sym, desc_act and checkpoint_format");
}

}  // namespace infer
