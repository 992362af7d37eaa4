// The flags of sampling and generation, with llama.cpp's names and defaults.
#pragma once

#include "tools/common.h"

namespace infer::tools {

struct GenerationFlags {
  Sampling sampling;
  int64_t top_k = 40, repeat_last_n = 64, n_predict = -1;
  std::vector<std::string> stop;
  bool given = false;  ///< any sampler flag was given: the author's defaults in the file do not apply

  void add_to(Arguments& arguments);
  /// Sampling to use with this model; prints the author's values to stderr when they are taken.
  Sampling resolve(const Model& model) const;
};

/// \n \t \r \" \' \\ \xNN as in C; anything else stays as it is.
std::string unescape(const std::string& text);

}  // namespace infer::tools
