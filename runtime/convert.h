// A Hugging Face folder in the form of a GGUF file: keys, names, orders of rows and tokens as llama.cpp's converter
// writes them, so that whatever reads GGUF files reads the result. hf_folder.h reads the folder; here is what differs
// between the two forms. Weights stay where they lie, so a model of any size is converted tensor by tensor while it is
// written.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "runtime/vocabulary.h"

namespace infer {

struct ConvertOptions {
  int n_threads = 0;                          ///< for weights that the folder holds quantised; 0: one per physical core
  bool exact = false;                         ///< such weights, where no block holds them, in F32 instead of 16 bits
  std::function<bool(double)> progress = {};  ///< of that; false cancels with Error(run)
};

struct Converted {
  Checkpoint checkpoint;
  std::vector<std::string> notes;  ///< what the file cannot say as the folder does; one line each, escaped
};

/// Throws Error(bad_file) naming what no GGUF file can say, and for everything that would not run.
Converted convert_folder(const std::string& folder, const ConvertOptions& options);

/// Rows of q and k for adjacent pairs, vectors in F32, tables of rope divisors as tensors.
void convert_tensors(Checkpoint& checkpoint);
/// Keys in GGUF's widths and without those that say what an architecture implies; general.*.
void convert_metadata(Checkpoint& checkpoint, std::vector<std::string>& notes);

/// The vocabulary without text rules, padded to the rows of the embedding. Encodes the text of every token in both
/// forms, and throws Error(bad_file) when they differ or when there are rules that GGUF cannot say.
Vocabulary convert_vocabulary(const Vocabulary& vocabulary, int64_t rows, std::vector<std::string>& notes);
/// The keys of such a vocabulary.
void put_vocabulary(const Vocabulary& vocabulary, Checkpoint& checkpoint);

/// The name in tokenizer.ggml.pre whose rules are those of a byte-level tokenizer.json. Throws Error(bad_file), which
/// begins with `where`, when there is none.
std::string pretokenizer_name(const TextRules& rules, const std::string& where);

}  // namespace infer
