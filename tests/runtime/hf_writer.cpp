// See hf_writer.h. Nothing here is shared with the reader.
#include "tests/runtime/hf_writer.h"

#include <cstring>
#include <fstream>
#include <stdexcept>

namespace infer::test {
namespace {

using Json = nlohmann::ordered_json;

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

std::string hf_name(std::string name) {
  const std::pair<const char*, const char*> pairs[] = {
      {"blk.", "model.layers."},
      {"token_embd", "model.embed_tokens"},
      {"output_norm", "model.norm"},
      {"attn_norm", "input_layernorm"},
      {"ffn_norm", "post_attention_layernorm"},
      {"attn_output", "self_attn.o_proj"},
      {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},
      {"ffn_gate", "mlp.gate_proj"},
      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},
  };
  if (name == "output.weight") return "lm_head.weight";
  for (const auto& [from, to] : pairs) name = replaced(name, from, to);
  return name;
}

/// Row i of the result is row 2i of each head, then the odd ones: the permutation of converters undone.
std::string unpermuted(const HostTensor& tensor, int64_t head_dim) {
  const size_t row_bytes = tensor.bytes / static_cast<size_t>(tensor.dims[0]);
  std::string out(tensor.bytes, '\0');
  for (int64_t row = 0; row < tensor.dims[0]; ++row) {
    const int64_t head = row / head_dim, within = row % head_dim;
    const int64_t to = head * head_dim + within % 2 * (head_dim / 2) + within / 2;
    std::memcpy(out.data() + static_cast<size_t>(to) * row_bytes, tensor.data + static_cast<size_t>(row) * row_bytes,
                row_bytes);
  }
  return out;
}

const char* type_name(DType dtype) {
  if (dtype == DType::F32) return "F32";
  if (dtype == DType::F16) return "F16";
  if (dtype == DType::BF16) return "BF16";
  throw std::logic_error("no safetensors type");
}

Json config_of(const Checkpoint& f) {
  const auto integer = [&](const std::string& key) { return f.get_int("llama." + key, 1, INT32_MAX); };
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", integer("embedding_length")},
          {"num_hidden_layers", integer("block_count")},
          {"num_attention_heads", integer("attention.head_count")},
          {"num_key_value_heads", integer("attention.head_count_kv")},
          {"intermediate_size", integer("feed_forward_length")},
          {"max_position_embeddings", integer("context_length")},
          {"vocab_size", integer("vocab_size")},
          {"hidden_act", "silu"},
          {"rope_theta", 10000.0},
          {"rope_scaling", nullptr},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", false},
          {"torch_dtype", "float32"}};
}

Json tokenizer_of(const Checkpoint& f) {
  const std::vector<std::string>& tokens = *f.find_strings("tokenizer.ggml.tokens");
  const auto types = *f.find_ints("tokenizer.ggml.token_type", static_cast<int64_t>(tokens.size()), 0, 6);
  Json vocab = Json::object(), added = Json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == 3 || types[i] == 4) {
      added.push_back({{"id", i}, {"content", tokens[i]}, {"special", types[i] == 3}, {"normalized", false}});
    } else {
      vocab[tokens[i]] = i;
    }
  }
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", *f.find_strings("tokenizer.ggml.merges")}}}};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace

std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + data;
}

std::string HfFiles::safetensors() const { return safetensors_bytes(header.dump(), data); }

void HfFiles::write(const std::string& folder) const {
  write_file(folder + "/config.json", config.dump());
  write_file(folder + "/tokenizer.json", tokenizer.dump());
  write_file(folder + "/tokenizer_config.json", tokenizer_config.dump());
  write_file(folder + "/model.safetensors", safetensors());
}

HfFiles hf_files(const Checkpoint& file) {
  HfFiles out;
  out.config = config_of(file);
  out.tokenizer = tokenizer_of(file);
  const std::vector<std::string>& tokens = *file.find_strings("tokenizer.ggml.tokens");
  const auto token = [&](const char* key) {
    return tokens[static_cast<size_t>(file.get_int(key, 0, static_cast<int64_t>(tokens.size()) - 1))];
  };
  out.tokenizer_config = {{"bos_token", token("tokenizer.ggml.bos_token_id")},
                          {"eos_token", token("tokenizer.ggml.eos_token_id")},
                          {"add_bos_token", false}};
  if (const auto text = file.find_string("tokenizer.chat_template")) out.tokenizer_config["chat_template"] = *text;
  const int64_t head_dim =
      file.get_int("llama.embedding_length", 1, INT32_MAX) / file.get_int("llama.attention.head_count", 1, INT32_MAX);
  out.header["__metadata__"] = {{"format", "pt"}};
  for (const HostTensor& tensor : file.tensors) {
    const bool rotates = tensor.name.ends_with("attn_q.weight") || tensor.name.ends_with("attn_k.weight");
    const std::string bytes =
        rotates ? unpermuted(tensor, head_dim) : std::string(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
    out.header[hf_name(tensor.name)] = {{"dtype", type_name(tensor.dtype)},
                                        {"shape", tensor.dims},
                                        {"data_offsets", {out.data.size(), out.data.size() + bytes.size()}}};
    out.data += bytes;
  }
  return out;
}

}  // namespace infer::test
