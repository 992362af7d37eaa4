// The head of a GGUF v3 file: keys, values and the list of tensors, as bytes. The reverse of gguf_metadata.cpp and
// gguf_tensors.cpp; every value gets back the type that it was read with.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

/// Everything before the data of the first tensor, padded. Tensors lie one after the other in the order given, each
/// padded to `alignment`; of each only name, dtype, dims and bytes count.
std::string gguf_head(const std::map<std::string, Value, std::less<>>& metadata, const std::vector<HostTensor>& tensors,
                      size_t alignment);

/// general.alignment, or 32.
size_t alignment_of(const Checkpoint& checkpoint);

}  // namespace infer
