// A llama model's forward pass written out by hand, in double, over the tensors of its file: no kernels, no batches, no
// cache. For tests that need the inputs of every product from somewhere else than the program.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer::test {

/// The inputs of one product, one row a token.
using Rows = std::vector<std::vector<double>>;

/// Inputs of every matrix of the model by the name of its tensor, for the tokens `ids` at positions 0, 1, 2 ...
std::map<std::string, Rows> naive_llama_inputs(const Checkpoint& file, const std::vector<int32_t>& ids);

}  // namespace infer::test
