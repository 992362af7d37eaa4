// Qwen 2 and Qwen 3 with experts. Their quirks: Qwen 2 has a shared expert with a weight of its own per token, and the
// weights of the chosen experts do not sum to one; Qwen 3 norms q and k per head.
#include "models/arch.h"

namespace infer {

Config qwen2moe_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  read_experts(checkpoint, config);
  return config;
}

Config qwen3moe_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.qk_norm = true;
  config.experts.sum_to_one = true;
  read_experts(checkpoint, config);
  return config;
}

}  // namespace infer
