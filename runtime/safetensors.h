// Reads the weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json names.
// Headers are untrusted: sizes, offsets, types and shapes are checked against the file before a tensor is made of them,
// and tensors must tile the data without overlap or hole. Names are left as they are; hf_names.h gives them meaning.
#pragma once

#include <string>

#include "models/checkpoint.h"

namespace infer {

struct SafetensorsOptions {
  bool mmap = true;  ///< false: read the files into memory, so that they may change afterwards
};

/// A Checkpoint without metadata. Throws Error: bad_file names file, tensor, found and allowed; run when a file cannot
/// be read.
Checkpoint read_safetensors(const std::string& folder, const SafetensorsOptions& options = {});

/// Whether the folder has weights that read_safetensors() would open.
bool has_safetensors(const std::string& folder);

}  // namespace infer
