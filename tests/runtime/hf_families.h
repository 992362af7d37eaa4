// Small Hugging Face folders with random weights, one of every model type that folders may have: the tensors and keys
// that its authors publish, in odd sizes.
#pragma once

#include <string>
#include <vector>

#include "tests/runtime/hf_writer.h"

namespace infer::test {

std::vector<std::string> hf_model_types();

/// `more` replaces keys of config.json. The embedding has `n_padding` more rows than there are tokens.
HfFiles hf_family(const std::string& model_type, const nlohmann::ordered_json& more = nlohmann::ordered_json::object(),
                  int64_t n_padding = 0);

}  // namespace infer::test
