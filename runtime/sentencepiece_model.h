// tokenizer.model, the file of SentencePiece: a protobuf message, read without its library. Both of its kinds that
// language models use, BPE and Unigram.
#pragma once

#include <string>

#include "runtime/vocabulary.h"

namespace infer {

/// What a Unigram model does with spaces and with characters that are no token.
struct UnigramSettings {
  bool strips_spaces = true;  ///< at the ends of a text, and all but one of several
  bool dummy_prefix = true;   ///< one in front
  bool byte_fallback = false;
};
TextRules unigram_rules(const UnigramSettings& settings);

/// Throws Error(bad_file) for a file that is no such message, and for a kind or a normaliser that is not supported.
Vocabulary read_sentencepiece_model(const std::string& path);

}  // namespace infer
