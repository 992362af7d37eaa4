// Which tokens end an answer and which are control tokens whatever their type says. Files are often silent or wrong
// about both, while the texts of these tokens are well known: they are the conventions of the model families.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/text_index.h"
#include "runtime/vocabulary.h"

namespace infer {

enum TokenRole : uint8_t {
  kEndsAnswer = 1,
  kStripsRight = 2,  ///< white space behind it is dropped
  kStripsLeft = 4,   ///< and before it
  kSingleWord = 8,   ///< not found inside a word
  kNormalized = 16,  ///< searched for in normalised text
};

/// Roles by id. Completes the special ids of `vocabulary` and turns well-known special tokens into control tokens.
std::vector<uint8_t> assign_roles(Vocabulary& vocabulary, const TextIndex& names);

}  // namespace infer
