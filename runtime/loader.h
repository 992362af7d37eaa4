// From a path to the parts of a model: opens the file, says what it holds, chooses the device, packs the weights. Each
// step throws Error; none of them knows engines or requests.
#pragma once

#include <string>

#include "infer.h"
#include "kernels/backend.h"
#include "models/checkpoint.h"
#include "models/config.h"
#include "models/weights.h"

namespace infer {

Checkpoint open_checkpoint(const std::string& path, const LoadOptions& options);

/// Name of a row of backends(): "auto" becomes the best one.
std::string choose_device(const std::string& name);

/// Packs, and lets go of the file's pages behind packed weights while it goes on.
Weights pack_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, const LoadOptions& options);

/// Everything that the metadata and tensor list say.
ModelInfo describe_file(const Checkpoint& checkpoint);
void describe_config(const Config& config, ModelInfo& info);

/// How people call general.file_type: "Q4_K - Medium". Without the key: the type of most tensor bytes.
std::string file_type_name(const Checkpoint& checkpoint);

}  // namespace infer
