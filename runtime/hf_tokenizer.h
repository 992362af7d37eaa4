// tokenizer.json as a Vocabulary: the tokens, and normalizers, pre-tokenizers, post-processor and decoder as the data
// of text_rules.h. A part that no rule here expresses is refused by its type's name.
#pragma once

#include "runtime/hf_tokenizer_config.h"
#include "runtime/json_file.h"
#include "runtime/text_rules.h"
#include "runtime/vocabulary.h"

namespace infer {

/// Throws Error(bad_file) naming place, found and allowed.
Vocabulary read_tokenizer_json(const JsonObject& root);

/// The parts that prepare text and put it together again (hf_text_rules.cpp); what concerns the model is left alone.
TextRules read_text_rules(const JsonObject& root);

/// Adds a token that is searched for in text. `where` begins messages.
void add_token(Vocabulary& vocabulary, const AddedToken& token, const std::string& where);

}  // namespace infer
