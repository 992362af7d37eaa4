// Whether a vocabulary means the same in the form of a GGUF file: asked of the two tokenizers, not of the rules.
#pragma once

#include <string>
#include <vector>

#include "runtime/vocabulary.h"

namespace infer {

/// Encodes what the tokens stand for, alone and two by two, with both, and throws Error(bad_file) for the first text
/// that is not the same ids; completes the tokens that end an answer in `gguf`. What notes told already is passed over.
void check_converted(const Vocabulary& folder, Vocabulary& gguf, std::vector<std::string>& notes);

}  // namespace infer
