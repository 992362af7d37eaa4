// SmolLM3: a llama, rows of q and k permuted for adjacent pairs too, whose every fourth layer does not rotate.
#include "models/arch.h"
#include "models/keys.h"

namespace infer {

Config smollm3_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.ropes[0].adjacent = checkpoint.find_bool(config.arch + ".rope.adjacent").value_or(true);
  read_windows(checkpoint, 0, 0, config);
  const auto rotates = Keys(checkpoint, config.arch).layer_flags("rope.layer_pattern", config.n_layers, 4);
  for (size_t i = 0; i < config.layers.size(); ++i) config.layers[i].rope = rotates[i] ? 0 : -1;
  return config;
}

}  // namespace infer
