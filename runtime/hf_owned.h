// Tensors of a Hugging Face folder that cannot be used as they lie in the file: copies that live as long as the
// checkpoint's storage.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

/// Keeps the files of a checkpoint, and the copies besides.
struct OwnedBytes {
  std::shared_ptr<const void> files;
  std::vector<std::unique_ptr<std::byte[]>> buffers;

  std::byte* add(size_t bytes);
};

/// Puts an OwnedBytes in the place of checkpoint.storage, which it keeps.
std::shared_ptr<OwnedBytes> own_storage(Checkpoint& checkpoint);

/// The numbers of a small tensor. Throws Error(bad_file) for a format that cannot be decoded.
std::vector<float> owned_floats(const Checkpoint& checkpoint, const HostTensor& tensor);
/// An F32 tensor of these numbers, with name and shape of `like`.
HostTensor owned_tensor(OwnedBytes& owned, const HostTensor& like, const std::vector<float>& values);

}  // namespace infer
