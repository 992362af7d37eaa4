// gpt-oss. Its quirks: every second layer, from the first on, has a window; each head's softmax has one more logit, the
// sink; the gate is clamped; and files call the norm before the experts post_attention_norm.
#include "models/arch.h"

namespace infer {

Config gpt_oss_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.activation = Activation::silu_clamped;
  config.attn_sinks = config.ffn_norm_is_post_attention_norm = true;
  config.experts.sum_to_one = true;
  read_experts(checkpoint, config);
  checkpoint.get_int("gpt-oss.attention.sliding_window", 1, INT32_MAX);
  read_windows(checkpoint, 0, 2, config);
  return config;
}

}  // namespace infer
