// The llama family: SmolLM2, Llama 2 and 3.x, Mistral and what was made in their shape. Its quirks: GGUF files have the
// rows of q and k permuted so that rotation works on adjacent pairs (rope.adjacent false: a file whose rows are in the
// authors' order, pairs half a head apart), and Mistral files may carry a window for all layers.
#include "models/arch.h"

namespace infer {

Config llama_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.ropes[0].adjacent = checkpoint.find_bool("llama.rope.adjacent").value_or(true);
  const int64_t window = checkpoint.find_int("llama.attention.sliding_window", 0, INT32_MAX).value_or(0);
  for (LayerConfig& layer : config.layers) layer.window = window;
  return config;
}

}  // namespace infer
