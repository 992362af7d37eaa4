// Writes Hugging Face folders for tests: a llama in GGUF, such as tiny_model() makes, in the form its authors would
// have published. The parts are JSON until they are written, so that tests can spoil them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "models/checkpoint.h"

namespace infer::test {

struct HfFiles {
  nlohmann::ordered_json config, header, tokenizer, tokenizer_config;
  std::string data;  ///< behind the header

  std::string safetensors() const;
  /// Writes the four files into an existing folder.
  void write(const std::string& folder) const;
};

/// Length, header, data.
std::string safetensors_bytes(const std::string& header, const std::string& data);

/// `file`: a llama with a byte-level vocabulary. Rows of q and k go back to the authors' order.
HfFiles hf_files(const Checkpoint& file);

}  // namespace infer::test
