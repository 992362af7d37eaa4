// A downloaded Hugging Face folder as a model: config.json, safetensors, tokenizer and chat template, without any
// conversion. This is where the pieces meet; each of them is read by a file of its own.
#pragma once

#include <optional>
#include <string>

#include "infer.h"
#include "models/checkpoint.h"
#include "runtime/vocabulary.h"

namespace infer {

/// When weights that a folder has in no format of the kernels are made: with the checkpoint, or by whoever wants them
/// (HostTensor::make).
enum class Numbers { now, later };

bool is_folder(const std::string& path);

/// The folder as a Checkpoint with GGUF's keys and names. With options.vocab_only the chat template and what belongs to
/// it, no more: then neither config.json nor weights need be there. `converting` becomes the seconds spent on bringing
/// tensors into formats that kernels know. Throws Error(bad_file).
Checkpoint read_hf_folder(const std::string& folder, const LoadOptions& options, Numbers numbers = Numbers::now,
                          double* converting = nullptr);

/// The vocabulary of tokenizer.json or tokenizer.model; nothing when the folder has neither.
std::optional<Vocabulary> read_hf_vocabulary(const std::string& folder);

}  // namespace infer
