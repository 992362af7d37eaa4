// Tensors of a Hugging Face folder that cannot be used as they lie in the file: copies that live as long as the
// checkpoint's storage.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

/// Keeps the files of a checkpoint, and the copies besides: side by side in a few large mappings, since with huge pages
/// new memory takes the system a fraction of the time.
class OwnedBytes {
 public:
  explicit OwnedBytes(std::shared_ptr<const void> files) : files_(std::move(files)) {}
  /// Zeros, aligned to a cache line. May be called by several threads. Throws Error(does_not_fit).
  std::byte* add(size_t bytes);

 private:
  std::shared_ptr<const void> files_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<void>> slabs_;
  std::byte* next_ = nullptr;  ///< in the last of them
  size_t left_ = 0;
};

/// Puts an OwnedBytes in the place of checkpoint.storage, which it keeps.
std::shared_ptr<OwnedBytes> own_storage(Checkpoint& checkpoint);

/// Makes all tensors that are yet to be made, on `n_threads`, and lets go of the pages that they are made of.
/// `progress` is told the share that is done; false cancels with Error(run).
void make_numbers(Checkpoint& checkpoint, int n_threads, const std::function<bool(double)>& progress);

/// The numbers of a small tensor. Throws Error(bad_file) for a format that cannot be decoded.
std::vector<float> owned_floats(const Checkpoint& checkpoint, const HostTensor& tensor);
/// An F32 tensor of these numbers, with name and shape of `like`.
HostTensor owned_tensor(OwnedBytes& owned, const HostTensor& like, const std::vector<float>& values);

}  // namespace infer
