// What the tensors of a Hugging Face folder are called in GGUF, the names that models/ binds: a table of rules for each
// family. Tensors whose contents differ as well (norms that mean 1 + w, experts one by one, MXFP4 in another order) are
// brought into GGUF's form here, in memory only where the bytes in the file cannot be used as they lie.
#pragma once

#include <span>
#include <string_view>

#include "models/checkpoint.h"

namespace infer {

/// What happens to a tensor besides its new name.
enum class Change {
  none,
  add_one,      ///< a copy in F32 with 1 added: norms of the Gemma family
  to_f32,       ///< a copy in F32: routers, whose rounding would choose other experts
  stack,        ///< one expert of a tensor [n_experts, ...]; the parts stay where they are
  ignore,       ///< tables that old programs saved
  gpt_oss_moe,  ///< experts of gpt-oss: see hf_gpt_oss.h
};

/// In `hf`, "{}" stands for the number of an expert. Names of layers begin after "model.layers.N." and "blk.N.".
struct NameRule {
  std::string_view hf, gguf;
  Change change = Change::none;
};

/// Which rules a model type has: those of layers, tried in order, and those of the model.
struct NameTable {
  std::span<const NameRule> model, layer, more_layer;
};

/// The families' tables.
extern const NameTable kLlamaNames, kGemmaNames, kPhi3Names, kMixtralNames, kQwenMoeNames, kGptOssNames;

struct RenameOptions {
  int64_t n_layers = 0, n_experts = 0;  ///< as config.json says
  bool tied = false;                    ///< the head is the embedding: a copy of it in the file is left out
};

/// Renames and changes the tensors of a checkpoint from read_safetensors(). Throws Error(bad_file) for a name without a
/// rule and for experts that are missing or differ in shape.
void rename_tensors(Checkpoint& checkpoint, const NameTable& table, const RenameOptions& options);

}  // namespace infer
