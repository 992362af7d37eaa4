// Granite: a llama, rows of q and k permuted for adjacent pairs too, with four factors of its own: on embeddings, on
// scores (base_config() reads that one), on each branch before it is added, and one that the logits are divided by.
#include "models/arch.h"
#include "models/keys.h"

namespace infer {

Config granite_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  const Keys keys(checkpoint, config.arch);
  config.ropes[0].adjacent = checkpoint.find_bool(config.arch + ".rope.adjacent").value_or(true);
  config.embed_scale = static_cast<float>(keys.number("embedding_scale", 1e-6, 1e6, 1));
  config.residual_scale = static_cast<float>(keys.number("residual_scale", 1e-6, 1e6, 1));
  config.logit_scale = static_cast<float>(1 / checkpoint.get_float(keys.name("logit_scale"), 1e-6, 1e6));
  // Models without any rotation say so in a key that is named after something else.
  if (!checkpoint.find_bool(keys.name("rope.scaling.finetuned")).value_or(true)) {
    for (LayerConfig& layer : config.layers) layer.rope = -1;
  }
  read_windows(checkpoint, 0, 0, config);
  return config;
}

}  // namespace infer
