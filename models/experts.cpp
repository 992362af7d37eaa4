// What a file says of its mixture of experts, and which of its layers have one. Ways of choosing experts that nobody
// here computes are refused by the name of their key.
#include "models/arch.h"

namespace infer {
namespace {

/// Values of expert_gating_func: how router logits become weights.
enum GatingFunc : int64_t { kSoftmax = 1, kSigmoid = 2, kSoftmaxOfChosen = 3 };

void read_gating(const Checkpoint& c, const std::string& arch, ExpertsConfig& experts) {
  const std::string key = arch + ".expert_gating_func";
  const int64_t gating = c.find_int(key, 0, INT32_MAX).value_or(0);
  if (gating == kSoftmaxOfChosen) experts.sum_to_one = true;
  if (gating != 0 && gating != kSoftmax && gating != kSoftmaxOfChosen) {
    c.refuse(key, "unsupported way of weighing experts", gating == kSigmoid ? "2 (sigmoid)" : std::to_string(gating),
             "1 (softmax), 3 (softmax of the chosen experts)");
  }
  if (const auto norm = c.find_bool(arch + ".expert_weights_norm")) experts.sum_to_one = *norm;
  experts.scale = static_cast<float>(c.find_float(arch + ".expert_weights_scale", 0, kMaxExpertScale).value_or(1));
  if (experts.scale == 0) experts.scale = 1;  // as converters write what a model does not have
}

void refuse_groups(const Checkpoint& c, const std::string& arch) {
  for (const char* name : {".expert_group_count", ".expert_group_used_count"}) {
    const int64_t groups = c.find_int(arch + name, 0, INT32_MAX).value_or(0);
    if (groups > 1) c.refuse(arch + name, "experts chosen by groups are not supported", std::to_string(groups), "0, 1");
  }
}

/// The second dimension of the first layer's tensor of this name: what files without the key leave to their shapes.
int64_t rows_of(const Checkpoint& c, const Config& config, const char* name) {
  for (int64_t i = 0; i < config.n_layers; ++i) {
    const HostTensor* tensor = c.find_tensor("blk." + std::to_string(i) + name);
    if (tensor && tensor->dims.size() >= 2) return tensor->dims[tensor->dims.size() - 2];
  }
  return 0;
}

}  // namespace

void read_experts(const Checkpoint& c, Config& config) {
  const std::string& arch = config.arch;
  ExpertsConfig& experts = config.experts;
  experts.n_experts = c.find_int(arch + ".expert_count", 0, kMaxExperts).value_or(0);
  if (experts.n_experts == 0) return;
  // Layers without any of these are dense, as decoder_sparse_step and mlp_only_layers of the original have it.
  bool any = false;
  for (int64_t i = 0; i < config.n_layers; ++i) {
    for (const char* name : {".ffn_gate_inp.weight", ".ffn_gate_exps.weight", ".ffn_down_exps.weight"}) {
      if (!c.find_tensor("blk." + std::to_string(i) + name)) continue;
      config.layers[static_cast<size_t>(i)].experts = any = true;
    }
  }
  if (!any) {
    c.refuse(arch + ".expert_count", "no layer has experts", std::to_string(experts.n_experts),
             "0, or tensors blk.N.ffn_gate_inp.weight, blk.N.ffn_gate_exps.weight");
  }
  experts.n_active = c.get_int(arch + ".expert_used_count", 1, experts.n_experts);
  read_gating(c, arch, experts);
  refuse_groups(c, arch);
  const int64_t rows = rows_of(c, config, ".ffn_gate_exps.weight");
  experts.expert_dim =
      c.find_int(arch + ".expert_feed_forward_length", 1, kMaxWidth).value_or(rows > 0 ? rows : config.ffn_dim);
  experts.shared_dim = c.find_int(arch + ".expert_shared_feed_forward_length", 0, kMaxWidth)
                           .value_or(rows_of(c, config, ".ffn_gate_shexp.weight"));
}

}  // namespace infer
