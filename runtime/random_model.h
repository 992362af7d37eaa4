// A model of a well-known shape with random weights: what measures a machine before a file is there.
#pragma once

#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

std::vector<std::string> random_shapes();

/// Metadata and weights as a file of that shape has them, quantised to `type` (one of quantize_types(); empty: F16) as
/// quantize() would choose; no tokenizer. Tensors of one format share their bytes, so that 8 billion weights take the
/// memory of the largest tensor. Throws Error: usage (shape, type), does_not_fit.
Checkpoint random_checkpoint(const std::string& shape, const std::string& type);

}  // namespace infer
