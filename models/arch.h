// The table of architectures: one row and one file each. A row turns a Checkpoint's metadata into a Config; the tensors
// that follow from a Config are the same rules for all (weights.cpp), so a new architecture is mostly its quirks.
#pragma once

#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "models/config.h"

namespace infer {

struct Arch {
  const char* name;     ///< value of general.architecture
  const char* summary;  ///< families it runs, for --help and the README
  Config (*config)(const Checkpoint&);
};

const std::vector<Arch>& architectures();  ///< the table, in archs.cpp

/// Reads and validates the Config of a checkpoint. Error(bad_file) for an unknown architecture lists the known ones.
Config read_config(const Checkpoint& checkpoint);

// Rows (models/<name>.cpp):
Config llama_config(const Checkpoint&);
Config qwen2_config(const Checkpoint&);
Config qwen3_config(const Checkpoint&);
Config gemma2_config(const Checkpoint&);
Config gemma3_config(const Checkpoint&);
Config phi3_config(const Checkpoint&);
Config smollm3_config(const Checkpoint&);
Config granite_config(const Checkpoint&);
Config qwen2moe_config(const Checkpoint&);
Config qwen3moe_config(const Checkpoint&);
Config olmoe_config(const Checkpoint&);
Config gpt_oss_config(const Checkpoint&);

/// Keys that most architectures share, read under the prefix "<arch>.": sizes, eps, context, one rope with its scaling.
Config base_config(const Checkpoint& checkpoint);

/// Windows of attention: "<arch>.attention.sliding_window" (0: none) on the layers that
/// ".attention.sliding_window_pattern" names, see Keys::layer_flags(). A file without these keys counts as if it had
/// the values given here.
void read_windows(const Checkpoint& checkpoint, int64_t absent_window, int64_t absent_pattern, Config& config);

/// Config::experts and which layers have them, for an architecture that may. What the file leaves open stays as
/// `config` has it.
void read_experts(const Checkpoint& checkpoint, Config& config);

}  // namespace infer
