// Gemma 3. Its quirks: every sixth layer sees everything with the file's rope, the others a window with a rope of their
// own; q and k are normed per head, branches before they are added; embeddings are scaled; GELU. GGUF files already
// have the 1 added to all norm weights.
#include <cmath>

#include "models/arch.h"

namespace infer {
namespace {

/// Which layers have the window: all but every n-th one (6 when the file is silent), or as an array says.
std::vector<bool> read_pattern(const Checkpoint& checkpoint, int64_t n_layers) {
  const char* key = "gemma3.attention.sliding_window_pattern";
  const auto it = checkpoint.metadata.find(key);
  if (it != checkpoint.metadata.end() && std::holds_alternative<std::vector<bool>>(it->second.data)) {
    const std::vector<int64_t> flags = *checkpoint.find_ints(key, n_layers, 0, 1);
    return {flags.begin(), flags.end()};
  }
  const int64_t period = checkpoint.find_int(key, 1, kMaxLayers).value_or(6);
  std::vector<bool> out;
  for (int64_t i = 0; i < n_layers; ++i) out.push_back((i + 1) % period != 0);
  return out;
}

}  // namespace

Config gemma3_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.activation = Activation::gelu_tanh;
  config.embed_scale = std::sqrt(static_cast<float>(config.dim));
  config.qk_norm = config.post_norms = true;
  // The 27B model alone divides by the width per head instead of the head's size, and no key says so.
  if (config.n_layers == 62 && config.dim == 5376 && config.n_heads == 32) {
    config.attn_scale = 1 / std::sqrt(static_cast<float>(config.dim / config.n_heads));
  }
  RopeConfig local;
  local.dim = config.ropes[0].dim;
  local.base = checkpoint.find_float("gemma3.rope.freq_base_swa", kMinRopeBase, kMaxRopeBase).value_or(10000);
  config.ropes.push_back(local);
  const int64_t window = checkpoint.get_int("gemma3.attention.sliding_window", 1, INT32_MAX);
  const std::vector<bool> local_layers = read_pattern(checkpoint, config.n_layers);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    if (local_layers[i]) config.layers[i] = {.window = window, .rope = 1};
  }
  return config;
}

}  // namespace infer
