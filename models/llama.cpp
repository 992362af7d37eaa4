// The llama family: SmolLM2, Llama 2 and 3.x, Mistral, Mixtral and what was made in their shape. Its quirks: GGUF files
// have the rows of q and k permuted so that rotation works on adjacent pairs (rope.adjacent false: a file whose rows
// are in the authors' order, pairs half a head apart), and Mistral has a window on all layers, of which converters
// write nothing.
#include "models/arch.h"

namespace infer {

Config llama_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  config.ropes[0].adjacent = checkpoint.find_bool(config.arch + ".rope.adjacent").value_or(true);
  read_windows(checkpoint, 0, 0, config);
  config.experts.sum_to_one = true;
  read_experts(checkpoint, config);
  return config;
}

}  // namespace infer
