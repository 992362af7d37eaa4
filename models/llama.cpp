// The llama family: SmolLM2, Llama 2 and 3.x, Mistral, Mixtral and what was made in their shape. Its quirks: GGUF files
// have the rows of q and k permuted so that rotation works on adjacent pairs, and Mistral files may carry a window for
// all layers.
#include "models/arch.h"

namespace infer {

Config llama_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.ropes[0].adjacent = true;
  config.experts.sum_to_one = true;
  read_experts(checkpoint, config);
  const int64_t window = checkpoint.find_int("llama.attention.sliding_window", 0, INT32_MAX).value_or(0);
  for (LayerConfig& layer : config.layers) layer.window = window;
  return config;
}

}  // namespace infer
