// ★ The tables of names, and their application.
#include "runtime/hf_names.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "infer/error.h"
#include "quant/formats.h"
#include "runtime/hf_gpt_oss.h"
#include "runtime/hf_owned.h"

namespace infer {
namespace {

constexpr NameRule kModel[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"lm_head.bias", "output.bias"},
};
constexpr NameRule kGemmaModel[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight", Change::add_one},
    {"lm_head.weight", "output.weight"},
};

constexpr NameRule kLlama[] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.o_proj.bias", "attn_output.bias"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
    {"mlp.gate_proj.bias", "ffn_gate.bias"},
    {"mlp.up_proj.bias", "ffn_up.bias"},
    {"mlp.down_proj.bias", "ffn_down.bias"},
    {"self_attn.rotary_emb.inv_freq", "", Change::ignore},
};

// Before those of kLlama, whose norms mean something else.
constexpr NameRule kGemma[] = {
    {"input_layernorm.weight", "attn_norm.weight", Change::add_one},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", Change::add_one},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight", Change::add_one},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight", Change::add_one},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", Change::add_one},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", Change::add_one},
};

constexpr NameRule kPhi3[] = {
    {"self_attn.qkv_proj.weight", "attn_qkv.weight"},
    {"self_attn.qkv_proj.bias", "attn_qkv.bias"},
    {"mlp.gate_up_proj.weight", "ffn_up.weight"},
};

constexpr NameRule kMixtral[] = {
    {"block_sparse_moe.gate.weight", "ffn_gate_inp.weight", Change::to_f32},
    {"block_sparse_moe.experts.{}.w1.weight", "ffn_gate_exps.weight", Change::stack},
    {"block_sparse_moe.experts.{}.w3.weight", "ffn_up_exps.weight", Change::stack},
    {"block_sparse_moe.experts.{}.w2.weight", "ffn_down_exps.weight", Change::stack},
};

constexpr NameRule kQwenMoe[] = {
    {"mlp.gate.weight", "ffn_gate_inp.weight", Change::to_f32},
    {"mlp.experts.{}.gate_proj.weight", "ffn_gate_exps.weight", Change::stack},
    {"mlp.experts.{}.up_proj.weight", "ffn_up_exps.weight", Change::stack},
    {"mlp.experts.{}.down_proj.weight", "ffn_down_exps.weight", Change::stack},
    {"mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"},
    {"mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"},
    {"mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"},
    {"mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"},
};

constexpr NameRule kGptOss[] = {
    {"post_attention_layernorm.weight", "post_attention_norm.weight"},
    {"self_attn.sinks", "attn_sinks.weight"},
    {"mlp.router.weight", "ffn_gate_inp.weight", Change::to_f32},
    {"mlp.router.bias", "ffn_gate_inp.bias"},
    {"mlp.experts.down_proj_bias", "ffn_down_exps.bias"},
    {"mlp.experts.gate_up_proj_bias", "gate_up_bias", Change::gpt_oss_moe},
    {"mlp.experts.gate_up_proj_blocks", "gate_up_blocks", Change::gpt_oss_moe},
    {"mlp.experts.gate_up_proj_scales", "gate_up_scales", Change::gpt_oss_moe},
    {"mlp.experts.down_proj_blocks", "down_blocks", Change::gpt_oss_moe},
    {"mlp.experts.down_proj_scales", "down_scales", Change::gpt_oss_moe},
};

/// A decimal number at the front of `text`, as names write it; takes it off.
std::optional<int64_t> take_number(std::string_view& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + std::min<size_t>(text.size(), 6), value);
  const auto n = static_cast<size_t>(end - text.data());
  if (error != std::errc() || text[0] == '-' || (n > 1 && text[0] == '0')) return std::nullopt;
  text.remove_prefix(n);
  return value;
}

struct Match {
  const NameRule* rule = nullptr;
  int64_t layer = -1, expert = -1;
};

bool matches(const NameRule& rule, std::string_view name, int64_t& expert) {
  const size_t hole = rule.hf.find("{}");
  if (hole == std::string_view::npos) return name == rule.hf;
  if (!name.starts_with(rule.hf.substr(0, hole))) return false;
  name.remove_prefix(hole);
  const auto number = take_number(name);
  if (!number || name != rule.hf.substr(hole + 2)) return false;
  expert = *number;
  return true;
}

Match find_rule(const NameTable& table, std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  Match match;
  std::span<const NameRule> lists[] = {table.model, {}};
  if (name.starts_with(kLayers)) {
    name.remove_prefix(kLayers.size());
    const auto layer = take_number(name);
    if (!layer || !name.starts_with('.')) return {};
    name.remove_prefix(1);
    match.layer = *layer;
    lists[0] = table.more_layer;
    lists[1] = table.layer;
  }
  for (const auto& list : lists) {
    for (const NameRule& rule : list) {
      if (!matches(rule, name, match.expert)) continue;
      match.rule = &rule;
      return match;
    }
  }
  return {};
}

std::string gguf_name(const Match& match) {
  const std::string prefix = match.layer < 0 ? "" : "blk." + std::to_string(match.layer) + ".";
  return prefix + std::string(match.rule->gguf);
}

/// The experts of one tensor, as they come.
struct Stack {
  std::vector<const HostTensor*> experts;
};

class Renamer {
 public:
  Renamer(Checkpoint& checkpoint, const NameTable& table, const RenameOptions& options)
      : checkpoint_(checkpoint), table_(table), options_(options), owned_(own_storage(checkpoint)) {}

  void run() {
    for (const HostTensor& tensor : checkpoint_.tensors) take(tensor);
    for (const auto& [name, stack] : stacks_) out_.push_back(stacked(name, stack));
    for (auto& [layer, parts] : gpt_oss_) {
      for (HostTensor& tensor : gpt_oss_experts(checkpoint_, layer, parts, *owned_)) out_.push_back(std::move(tensor));
    }
    checkpoint_.tensors = std::move(out_);
    checkpoint_.index_tensors();
  }

 private:
  void take(const HostTensor& tensor) {
    const Match match = find_rule(table_, tensor.name);
    if (!match.rule) checkpoint_.refuse(tensor.name, "unexpected tensor: the model type has no use for it");
    if (match.layer >= options_.n_layers)
      checkpoint_.refuse(tensor.name, "more layers than config.json says", "", std::to_string(options_.n_layers));
    if (options_.tied && match.rule->gguf == "output.weight") return;
    switch (match.rule->change) {
      case Change::none:
        out_.push_back(tensor);
        out_.back().name = gguf_name(match);
        break;
      case Change::add_one:
        out_.push_back(in_f32(tensor, 1));
        out_.back().name = gguf_name(match);
        break;
      case Change::to_f32:
        out_.push_back(in_f32(tensor, 0));
        out_.back().name = gguf_name(match);
        break;
      case Change::stack:
        add_expert(tensor, match);
        break;
      case Change::gpt_oss_moe:
        gpt_oss_[match.layer].emplace(match.rule->gguf, &tensor);
        break;
      case Change::ignore:
        break;
    }
  }

  HostTensor in_f32(const HostTensor& tensor, float plus) {
    std::vector<float> values = owned_floats(checkpoint_, tensor);
    for (float& value : values) value += plus;
    return owned_tensor(*owned_, tensor, std::move(values));
  }

  void add_expert(const HostTensor& tensor, const Match& match) {
    Stack& stack = stacks_[gguf_name(match)];
    stack.experts.resize(static_cast<size_t>(options_.n_experts));
    if (match.expert >= options_.n_experts)
      checkpoint_.refuse(tensor.name, "more experts than config.json says", std::to_string(match.expert + 1),
                         std::to_string(options_.n_experts));
    stack.experts[static_cast<size_t>(match.expert)] = &tensor;  // names differ, so nobody was here before
  }

  HostTensor stacked(const std::string& name, const Stack& stack) const {
    HostTensor out;
    for (size_t i = 0; i < stack.experts.size(); ++i) {
      const HostTensor* expert = stack.experts[i];
      if (!expert) checkpoint_.refuse(name, "an expert is missing", "", "expert " + std::to_string(i));
      if (i == 0) {
        out = *expert;
      } else if (expert->dims != stack.experts[0]->dims || expert->dtype != stack.experts[0]->dtype) {
        checkpoint_.refuse(expert->name, "shape or type differs from that of the other experts");
      }
      out.parts.push_back(expert->data);
    }
    const auto is_made = [](const HostTensor* expert) { return expert->make != nullptr; };
    if (std::any_of(stack.experts.begin(), stack.experts.end(), is_made)) make_each(stack, out);
    out.name = name;
    out.dims.insert(out.dims.begin(), static_cast<int64_t>(stack.experts.size()));
    out.bytes *= stack.experts.size();
    out.data = nullptr;
    out.columns = nullptr;
    return out;
  }

  static void make_each(const Stack& stack, HostTensor& out) {
    std::vector<HostTensor> experts;
    out.made_of.clear();
    for (const HostTensor* expert : stack.experts) {
      experts.push_back(*expert);
      out.made_of.insert(out.made_of.end(), expert->made_of.begin(), expert->made_of.end());
    }
    out.parts.clear();
    out.make = [experts = std::move(experts)](int64_t first, int64_t n, std::byte* to) {
      const HostTensor& one = experts[0];
      const int64_t rows = one.n_elements() / one.dims.back();
      const size_t row_bytes = one.bytes / static_cast<size_t>(rows);
      for (const int64_t end = first + n; first < end;) {
        const int64_t n_here = std::min(rows - first % rows, end - first);
        experts[static_cast<size_t>(first / rows)].copy_rows(first % rows, n_here, to);
        to += static_cast<size_t>(n_here) * row_bytes;
        first += n_here;
      }
    };
  }

  Checkpoint& checkpoint_;
  const NameTable& table_;
  const RenameOptions& options_;
  std::shared_ptr<OwnedBytes> owned_;
  std::vector<HostTensor> out_;
  std::map<std::string, Stack> stacks_;
  std::map<int64_t, GptOssParts> gpt_oss_;
};

}  // namespace

const NameTable kLlamaNames = {kModel, kLlama, {}};
const NameTable kGemmaNames = {kGemmaModel, kLlama, kGemma};
const NameTable kPhi3Names = {kModel, kLlama, kPhi3};
const NameTable kMixtralNames = {kModel, kLlama, kMixtral};
const NameTable kQwenMoeNames = {kModel, kLlama, kQwenMoe};
const NameTable kGptOssNames = {kModel, kLlama, kGptOss};

void rename_tensors(Checkpoint& checkpoint, const NameTable& table, const RenameOptions& options) {
  Renamer(checkpoint, table, options).run();
}

}  // namespace infer
