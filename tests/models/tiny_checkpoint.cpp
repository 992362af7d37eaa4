// See tiny_checkpoint.h.
#include "tests/models/tiny_checkpoint.h"

#include <cstring>
#include <random>

#include "quant/formats.h"
#include "tests/catch.h"

namespace infer {

TinyCheckpoint::TinyCheckpoint(const std::string& arch, const TinyShape& s) : arch_(arch) {
  checkpoint_.path = "tiny.gguf";
  checkpoint_.format = "memory";
  set("general.architecture", arch);
  set("block_count", s.n_layers).set("context_length", int64_t{128}).set("embedding_length", s.dim);
  set("feed_forward_length", s.ffn_dim).set("attention.head_count", s.n_heads);
  set("attention.head_count_kv", s.n_kv_heads).set("attention.key_length", s.head_dim);
  set("attention.value_length", s.head_dim).set("attention.layer_norm_rms_epsilon", 1e-5).set("rope.freq_base", 1e4);
  if (s.n_experts > 0) {
    set("expert_count", s.n_experts).set("expert_used_count", s.n_active);
    set("expert_feed_forward_length", s.expert_dim);
    if (s.shared_dim > 0) set("expert_shared_feed_forward_length", s.shared_dim);
  }
  const bool gemma = arch == "gemma2" || arch == "gemma3", gpt_oss = arch == "gpt-oss", whole_norm = arch == "olmoe";
  if (gemma || gpt_oss) set("attention.sliding_window", int64_t{16});
  if (arch == "granite") set("logit_scale", 4.0);
  tensor("token_embd.weight", {s.vocab, s.dim}).tensor("output_norm.weight", {s.dim});
  const int64_t q = s.n_heads * s.head_dim, kv = s.n_kv_heads * s.head_dim;
  for (int64_t i = 0; i < s.n_layers; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    tensor(blk + "attn_norm.weight", {s.dim});
    tensor(blk + (gpt_oss ? "post_attention_norm.weight" : "ffn_norm.weight"), {s.dim});
    tensor(blk + "attn_output.weight", {s.dim, q});
    if (arch == "phi3") {
      tensor(blk + "attn_qkv.weight", {q + 2 * kv, s.dim}).tensor(blk + "ffn_up.weight", {2 * s.ffn_dim, s.dim});
    } else {
      tensor(blk + "attn_q.weight", {q, s.dim});
      tensor(blk + "attn_k.weight", {kv, s.dim}).tensor(blk + "attn_v.weight", {kv, s.dim});
    }
    if (s.n_experts > 0) {
      add_experts(blk, s);
    } else {
      if (arch != "phi3")
        tensor(blk + "ffn_gate.weight", {s.ffn_dim, s.dim}).tensor(blk + "ffn_up.weight", {s.ffn_dim, s.dim});
      tensor(blk + "ffn_down.weight", {s.dim, s.ffn_dim});
    }
    if (whole_norm || arch == "gemma3" || arch == "qwen3" || arch == "qwen3moe")
      tensor(blk + "attn_q_norm.weight", {whole_norm ? q : s.head_dim})
          .tensor(blk + "attn_k_norm.weight", {whole_norm ? kv : s.head_dim});
    if (gpt_oss) tensor(blk + "attn_sinks.weight", {s.n_heads});
    if (gemma) tensor(blk + "post_attention_norm.weight", {s.dim}).tensor(blk + "post_ffw_norm.weight", {s.dim});
  }
}

void TinyCheckpoint::add_experts(const std::string& blk, const TinyShape& s) {
  tensor(blk + "ffn_gate_inp.weight", {s.n_experts, s.dim});
  tensor(blk + "ffn_gate_exps.weight", {s.n_experts, s.expert_dim, s.dim});
  tensor(blk + "ffn_up_exps.weight", {s.n_experts, s.expert_dim, s.dim});
  tensor(blk + "ffn_down_exps.weight", {s.n_experts, s.dim, s.expert_dim});
  if (s.shared_dim == 0) return;
  tensor(blk + "ffn_gate_inp_shexp.weight", {s.dim});
  tensor(blk + "ffn_gate_shexp.weight", {s.shared_dim, s.dim})
      .tensor(blk + "ffn_up_shexp.weight", {s.shared_dim, s.dim});
  tensor(blk + "ffn_down_shexp.weight", {s.dim, s.shared_dim});
}

std::string TinyCheckpoint::full(const std::string& key) const {
  return key.starts_with("general.") ? key : arch_ + "." + key;
}

TinyCheckpoint& TinyCheckpoint::set(const std::string& key, Value::Data data) {
  checkpoint_.metadata[full(key)] = {std::move(data), "test value"};
  return *this;
}

TinyCheckpoint& TinyCheckpoint::erase(const std::string& key) {
  REQUIRE(checkpoint_.metadata.erase(full(key)) == 1);
  return *this;
}

TinyCheckpoint& TinyCheckpoint::tensor(const std::string& name, std::vector<int64_t> dims, DType dtype) {
  HostTensor t;
  t.name = name;
  t.dtype = dtype;
  t.dims = dims;
  const int64_t bytes = tensor_bytes(dtype, t.n_elements() / dims.back(), dims.back());
  REQUIRE(bytes >= 0);
  std::vector<float> numbers(static_cast<size_t>(t.n_elements()));
  std::minstd_rand generator(static_cast<uint32_t>(name.size() + numbers.size()));
  for (float& x : numbers) x = static_cast<float>(generator() % 2001) / 1000.0f - 1;
  storage_->emplace_back(static_cast<size_t>(bytes));
  encode_row(dtype, numbers.data(), storage_->back().data(), t.n_elements());  // formats without encoder stay zero
  t.data = storage_->back().data();
  t.bytes = storage_->back().size();
  for (HostTensor& old : checkpoint_.tensors) {
    if (old.name == name) {
      old = t;
      return *this;
    }
  }
  checkpoint_.tensors.push_back(t);
  return *this;
}

TinyCheckpoint& TinyCheckpoint::numbers(const std::string& name, const std::vector<float>& values) {
  tensor(name, {static_cast<int64_t>(values.size())});
  std::memcpy(this->values(name), values.data(), values.size() * sizeof(float));
  return *this;
}

TinyCheckpoint& TinyCheckpoint::drop(const std::string& name) {
  REQUIRE(std::erase_if(checkpoint_.tensors, [&](const HostTensor& t) { return t.name == name; }) == 1);
  return *this;
}

float* TinyCheckpoint::values(const std::string& name) {
  for (HostTensor& t : checkpoint_.tensors) {
    if (t.name == name && t.dtype == DType::F32) return reinterpret_cast<float*>(const_cast<std::byte*>(t.data));
  }
  FAIL("no F32 tensor " << name);
  return nullptr;
}

Checkpoint TinyCheckpoint::build() const {
  Checkpoint out = checkpoint_;
  out.storage = storage_;
  out.index_tensors();
  return out;
}

}  // namespace infer
