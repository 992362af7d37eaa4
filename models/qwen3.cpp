// Qwen 3, dense: q and k are normed per head before the rotation. Otherwise as Qwen 2, without biases.
#include "models/arch.h"

namespace infer {

Config qwen3_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.qk_norm = true;
  read_windows(checkpoint, 0, 0, config);
  return config;
}

}  // namespace infer
