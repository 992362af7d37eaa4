// tokenizer.model, the file of SentencePiece: a protobuf message, read without its library. Both of its kinds that
// language models use, BPE and Unigram.
#pragma once

#include <string>

#include "runtime/vocabulary.h"

namespace infer {

/// Throws Error(bad_file) for a file that is no such message, and for a kind or a normaliser that is not supported.
Vocabulary read_sentencepiece_model(const std::string& path);

}  // namespace infer
