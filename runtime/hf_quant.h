// Weights that a Hugging Face folder holds quantised: which of the methods that config.json names can be read.
#pragma once

#include <string_view>

#include "runtime/json_file.h"

namespace infer {

/// Throws Error(bad_file) for a quantization_config that names a method not known for this model type.
void require_known_quantisation(const JsonObject& config, std::string_view model_type);

}  // namespace infer
