// OLMoE. Its quirks: the norms of q and k run over all heads at once, and the weights of the chosen experts do not sum
// to one.
#include "models/arch.h"

namespace infer {

Config olmoe_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.qk_norm = config.qk_norm_whole = true;
  read_experts(checkpoint, config);
  const char* clamp = "olmoe.attention.clamp_kqv";
  if (const double limit = checkpoint.find_float(clamp, 0, 1e30).value_or(0); limit != 0) {
    checkpoint.refuse(clamp, "clamped q, k and v are not supported", std::to_string(limit), "absent or 0");
  }
  return config;
}

}  // namespace infer
