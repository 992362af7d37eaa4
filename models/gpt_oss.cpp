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
  const int64_t window = checkpoint.get_int("gpt-oss.attention.sliding_window", 1, INT32_MAX);
  checkpoint.find_int("gpt-oss.attention.sliding_window_pattern", 2, 2);  // no other is known
  for (size_t i = 0; i < config.layers.size(); i += 2) config.layers[i].window = window;
  return config;
}

}  // namespace infer
