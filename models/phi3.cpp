// Phi-3 and Phi-4. Its quirks: q, k and v are one tensor and so are gate and up, which the rules for weights split; the
// last elements of each head may stay unrotated; long contexts have frequencies of their own (longrope); a window on
// all layers, 0 in files of models without.
#include "models/arch.h"

namespace infer {

Config phi3_config(const Checkpoint& checkpoint) {
  Config config = base_config(checkpoint);
  read_windows(checkpoint, 0, 0, config);
  return config;
}

}  // namespace infer
