// Reads GGUF files (v2 and v3, little endian, single or split) into a Checkpoint. Everything a file declares is checked
// against the file before it is used or memory is taken for it; what keys and tensors mean is left to models/.
#pragma once

#include <string>
#include <vector>

#include "infer.h"  // MetadataOverride
#include "models/checkpoint.h"

namespace infer {

struct GgufOptions {
  bool mmap = true;            ///< false: read the file into memory, so that it may change afterwards
  bool metadata_only = false;  ///< check the first part whole, but return no tensors and open no other part
  std::vector<MetadataOverride> overrides;
};

/// `path` is a GGUF file or the first part of a split one (its siblings are found by their names). Throws Error:
/// bad_file names file, key or tensor, found and allowed; run when a file cannot be read; usage for a malformed
/// override.
Checkpoint read_gguf(const std::string& path, const GgufOptions& options = {});

/// Whether the file can be read and begins like a GGUF file. Never throws.
bool looks_like_gguf(const std::string& path);

}  // namespace infer
