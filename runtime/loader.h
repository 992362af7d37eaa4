// From a path to the parts of a model: opens the file, says what it holds, chooses the device, packs the weights. Each
// step throws Error; none of them knows engines or requests.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer.h"
#include "kernels/backend.h"
#include "models/checkpoint.h"
#include "models/config.h"
#include "models/weights.h"
#include "runtime/hf_folder.h"
#include "runtime/vocabulary.h"

namespace infer {

/// `path`: a GGUF file or a Hugging Face folder. `converting` becomes the seconds spent on bringing the tensors of a
/// folder into formats that kernels know.
Checkpoint open_checkpoint(const std::string& path, const LoadOptions& options, Numbers numbers = Numbers::now,
                           double* converting = nullptr);
/// The vocabulary that belongs to it; nothing when there is none.
std::optional<Vocabulary> open_vocabulary(const Checkpoint& checkpoint);

/// Puts these into the metadata, under the keys of models/rope_config.h. Throws Error(usage) for a value out of range.
void replace_rope(const RopeOptions& options, Checkpoint& checkpoint);

/// "cuda:1" as a row of backends() and a number; "auto" and "" stay "auto". Throws Error(usage) naming the choices.
struct DeviceName {
  std::string name;
  int index = 0;
};
DeviceName parse_device(const std::string& text);

/// Whether that can be a device with memory of its own which is there.
bool may_use_gpu(const std::string& device);

/// What make_backend() is told of these.
BackendOptions backend_options(const LoadOptions& options, int device_index);

/// A device that a model will be computed on. `note` says why none before it in the table was taken, of those that are
/// there at all; empty unless the choice was left to this function.
struct DeviceChoice {
  DeviceName device;
  std::unique_ptr<Backend> backend;
  std::string note;
};

/// The device of `options`. "auto": the first GPU that can be used, has a kernel for everything in `bound` and memory
/// for the weights and a useful context; else the host. Throws Error when a device named by the user cannot be used.
DeviceChoice choose_device(const LoadOptions& options, const Config& config, const std::vector<BoundTensor>& bound);

/// Throws Error(does_not_fit) when the device, or the host where it has no memory of its own, has less left than the
/// packed weights take.
void require_room_for_weights(const Backend& backend, const std::vector<BoundTensor>& bound);

/// Packs, and lets go of the file's pages behind packed weights while it goes on.
Weights pack_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, const LoadOptions& options);

/// Everything that the metadata and tensor list say.
ModelInfo describe_file(const Checkpoint& checkpoint);
void describe_config(const Config& config, ModelInfo& info);

/// How people call general.file_type: "Q4_K - Medium". Without the key: the type of most tensor bytes.
std::string file_type_name(const Checkpoint& checkpoint);

}  // namespace infer
