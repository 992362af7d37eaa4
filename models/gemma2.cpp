// Gemma 2. Its quirks: every other layer has a window, from the first on; branches are normed before they are added;
// scores and logits are softly capped; embeddings are scaled; GELU. GGUF files already have the 1 added to all norm
// weights.
#include <cmath>

#include "models/arch.h"

namespace infer {

Config gemma2_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.activation = Activation::gelu_tanh;
  config.embed_scale = std::sqrt(static_cast<float>(config.dim));
  config.post_norms = true;
  // The first files were written before these had keys: all published models have the same values.
  if (!checkpoint.has("gemma2.attn_logit_softcapping")) config.attn_softcap = 50;
  if (!checkpoint.has("gemma2.final_logit_softcapping")) config.logit_softcap = 30;
  read_windows(checkpoint, 4096, 2, config);
  // The 27B model alone divides by the width per head instead of the head's size, and converters write nothing of it.
  const bool is_27b = config.n_layers == 46 && config.dim == 4608 && config.n_heads == 32;
  if (is_27b && !checkpoint.has("gemma2.attention.scale")) {
    config.attn_scale = 1 / std::sqrt(static_cast<float>(config.dim / config.n_heads));
  }
  return config;
}

}  // namespace infer
