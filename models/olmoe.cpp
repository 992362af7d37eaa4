// OLMoE. Its quirks: the norms of q and k run over all heads at once, and the weights of the chosen experts do not sum
// to one.
#include "models/arch.h"

namespace infer {

Config olmoe_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.qk_norm = config.qk_norm_whole = true;
  read_experts(checkpoint, config);
  return config;
}

}  // namespace infer
