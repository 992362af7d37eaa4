// Opening and packing; the device is chosen in device_choice.cpp.
#include "runtime/loader.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "runtime/gguf.h"
#include "runtime/hf_folder.h"

namespace infer {
namespace {

// The kernel reads the pages again should anybody want them; until then they do not count as this process's memory.
void drop_mapped_pages(const Checkpoint& checkpoint) {
  if (!checkpoint.mapped) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto drop = [page](const std::byte* data, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(data) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(data) + bytes + page - 1) / page * page;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  };
  for (const HostTensor& tensor : checkpoint.tensors) {
    if (tensor.owned) continue;
    if (tensor.data) drop(tensor.data, tensor.bytes);
    for (const std::byte* part : tensor.parts) drop(part, tensor.bytes / tensor.parts.size());
  }
}

}  // namespace

Checkpoint open_checkpoint(const std::string& path, const LoadOptions& options) {
  if (is_folder(path)) return read_hf_folder(path, options);
  GgufOptions gguf;
  gguf.mmap = options.mmap;
  gguf.metadata_only = options.vocab_only;
  gguf.overrides = options.overrides;
  return read_gguf(path, gguf);
}

std::optional<Vocabulary> open_vocabulary(const Checkpoint& checkpoint) {
  return is_folder(checkpoint.path) ? read_hf_vocabulary(checkpoint.path) : vocabulary_from(checkpoint);
}

Weights pack_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, const LoadOptions& options) {
  double dropped = 0;
  // Pages on their way to a device are not dropped under the feet of those who copy them, but in long strides.
  const double step = (backend.memory_left() ? 1e9 : 16e6) / static_cast<double>(checkpoint.file_bytes + 1);
  auto progress = [&](double fraction) {
    if (fraction - dropped >= step) {
      drop_mapped_pages(checkpoint);
      dropped = fraction;
    }
    return !options.progress || options.progress(fraction);
  };
  Weights weights = load_weights(checkpoint, config, backend, backend.n_threads(), options.check_tensors, progress);
  if (weights.packed_bytes > 0) drop_mapped_pages(checkpoint);
  return weights;
}

}  // namespace infer
