// What a file says about itself, as people want to read it: names, sizes, metadata, the author's sampling defaults.
#include <algorithm>
#include <map>

#include "quant/formats.h"
#include "runtime/loader.h"

namespace infer {
namespace {

// Values of general.file_type; the number says how the file was made, not what each tensor is.
struct FileType {
  int64_t value;
  const char* name;
};
constexpr FileType kFileTypes[] = {
    {0, "F32"},           {1, "F16"},           {2, "Q4_0"},           {3, "Q4_1"},          {7, "Q8_0"},
    {8, "Q5_0"},          {9, "Q5_1"},          {10, "Q2_K - Medium"}, {11, "Q3_K - Small"}, {12, "Q3_K - Medium"},
    {13, "Q3_K - Large"}, {14, "Q4_K - Small"}, {15, "Q4_K - Medium"}, {16, "Q5_K - Small"}, {17, "Q5_K - Medium"},
    {18, "Q6_K"},         {19, "IQ2_XXS"},      {20, "IQ2_XS"},        {21, "Q2_K - Small"}, {22, "IQ3_XS"},
    {23, "IQ3_XXS"},      {24, "IQ1_S"},        {25, "IQ4_NL"},        {26, "IQ3_S"},        {27, "IQ3_M"},
    {28, "IQ2_S"},        {29, "IQ2_M"},        {30, "IQ4_XS"},        {31, "IQ1_M"},        {32, "BF16"},
    {36, "TQ1_0"},        {37, "TQ2_0"},        {38, "MXFP4"},
};

constexpr std::string_view kSamplingPrefix = "general.sampling.";

// The reader has refused every type that is not in the table.
std::string type_name(DType dtype) {
  const FormatInfo* format = find_format(dtype);
  return format ? format->name : "type " + std::to_string(static_cast<uint32_t>(dtype));
}

std::optional<double> as_number(const Value& value) {
  if (const auto* i = std::get_if<int64_t>(&value.data)) return static_cast<double>(*i);
  if (const auto* d = std::get_if<double>(&value.data)) return *d;
  return std::nullopt;
}

// A string of the metadata, or nothing when it is missing or of another type: a listing is no place to refuse.
std::string string_or_empty(const Checkpoint& checkpoint, std::string_view key) {
  const auto found = checkpoint.metadata.find(key);
  if (found == checkpoint.metadata.end()) return {};
  const auto* text = std::get_if<std::string>(&found->second.data);
  return text ? *text : std::string();
}

}  // namespace

std::string file_type_name(const Checkpoint& checkpoint) {
  const auto found = checkpoint.metadata.find("general.file_type");
  if (found != checkpoint.metadata.end())
    if (const auto* value = std::get_if<int64_t>(&found->second.data))
      for (const FileType& type : kFileTypes)
        if (type.value == *value) return type.name;
  std::map<DType, size_t> bytes;
  for (const HostTensor& tensor : checkpoint.tensors) bytes[tensor.dtype] += tensor.bytes;
  if (bytes.empty()) return "unknown";
  return type_name(
      std::max_element(bytes.begin(), bytes.end(), [](auto& a, auto& b) { return a.second < b.second; })->first);
}

ModelInfo describe_file(const Checkpoint& checkpoint) {
  ModelInfo info;
  info.path = checkpoint.path;
  info.format = checkpoint.format;
  info.arch = string_or_empty(checkpoint, "general.architecture");
  info.name = string_or_empty(checkpoint, "general.name");
  info.file_type = file_type_name(checkpoint);
  info.file_bytes = checkpoint.file_bytes;
  info.has_chat_template = !string_or_empty(checkpoint, "tokenizer.chat_template").empty();
  info.warnings = checkpoint.warnings;
  for (const auto& [key, value] : checkpoint.metadata) {
    info.metadata.emplace_back(key, value.text());
    info.metadata_types.emplace_back(key, value.type);
    const auto number = as_number(value);
    if (number && key.starts_with(kSamplingPrefix))
      info.author_sampling.emplace_back(key.substr(kSamplingPrefix.size()), *number);
  }
  for (const HostTensor& tensor : checkpoint.tensors) {
    info.tensors.push_back({tensor.name, type_name(tensor.dtype), tensor.dims, tensor.bytes});
    info.tensor_bytes += tensor.bytes;
    info.n_params += tensor.n_elements();
  }
  return info;
}

void describe_config(const Config& config, ModelInfo& info) {
  info.n_layers = config.n_layers;
  info.dim = config.dim;
  info.n_heads = config.n_heads;
  info.n_kv_heads = config.n_kv_heads;
  info.head_dim = config.head_dim;
  info.ffn_dim = config.ffn_dim;
  info.vocab = config.vocab;
  info.context_length = config.n_ctx_train;
  info.n_experts = config.experts.n_experts;
  info.n_active = config.experts.n_active;
  info.n_active_params = 0;
  for (const TensorInfo& tensor : info.tensors) {
    int64_t n = 1;
    for (const int64_t dim : tensor.dims) n *= dim;
    const bool stack = tensor.dims.size() == 3 && info.n_experts > 0;
    info.n_active_params += stack ? n / info.n_experts * info.n_active : n;
  }
}

}  // namespace infer
