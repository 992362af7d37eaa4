// Qwen 2 and 2.5, dense. Its quirk is the biases of q, k and v, which are bound wherever a file has them. Few of the
// models have a window, on the upper layers; converters write nothing of it.
#include "models/arch.h"

namespace infer {

Config qwen2_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  read_windows(checkpoint, 0, 0, config);
  return config;
}

}  // namespace infer
