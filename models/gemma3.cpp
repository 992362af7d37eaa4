// Gemma 3. Its quirks: every sixth layer sees everything with the file's rope, the others a window with a rope of their
// own; q and k are normed per head, branches before they are added; embeddings are scaled; GELU. GGUF files already
// have the 1 added to all norm weights.
#include <cmath>

#include "models/arch.h"

namespace infer {

Config gemma3_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.activation = Activation::gelu_tanh;
  config.embed_scale = std::sqrt(static_cast<float>(config.dim));
  config.qk_norm = config.post_norms = true;
  // The 27B model alone divides by the width per head instead of the head's size, and converters write nothing of it.
  const bool is_27b = config.n_layers == 62 && config.dim == 5376 && config.n_heads == 32;
  if (is_27b && !checkpoint.has("gemma3.attention.scale")) {
    config.attn_scale = 1 / std::sqrt(static_cast<float>(config.dim / config.n_heads));
  }
  RopeConfig local;
  local.dim = config.ropes[0].dim;
  local.base = checkpoint.find_float("gemma3.rope.freq_base_swa", kMinRopeBase, kMaxRopeBase).value_or(10000);
  config.ropes.push_back(local);
  checkpoint.get_int("gemma3.attention.sliding_window", 1, INT32_MAX);
  read_windows(checkpoint, 0, 6, config);
  for (LayerConfig& layer : config.layers) layer.rope = layer.window > 0 ? 1 : 0;
  return config;
}

}  // namespace infer
