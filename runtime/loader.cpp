// Opening, what replaces parts of the metadata, and packing; the device is chosen in device_choice.cpp.
#include "runtime/loader.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cpu/thread_pool.h"
#include "models/rope_config.h"
#include "runtime/gguf.h"
#include "runtime/pages.h"

namespace infer {
namespace {

void drop_mapped_pages(const Checkpoint& checkpoint) {
  if (!checkpoint.mapped) return;
  for (const HostTensor& tensor : checkpoint.tensors) {
    if (tensor.owned) continue;
    if (tensor.data) drop_file_pages(tensor.data, tensor.bytes);
    for (const std::byte* part : tensor.parts) drop_file_pages(part, tensor.bytes / tensor.parts.size());
    for (const auto& part : tensor.made_of) drop_file_pages(part.data(), part.size());
  }
}

// Matrices that were made in memory while the file was opened, and that are read in their packed form from now on.
void drop_packed_copies(const Checkpoint& checkpoint, const Weights& weights) {
  for (const NamedMatrix& matrix : weights.matrices) {
    const HostTensor* tensor = checkpoint.find_tensor(matrix.name);
    if (!tensor || !tensor->owned) continue;
    const std::byte* first = tensor->parts.empty() ? tensor->data : tensor->parts[0];
    if (matrix.w.data == first || weights.embed.data == first) continue;  // used where it lies
    if (tensor->data) drop_buffer_pages(tensor->data, tensor->bytes);
    for (const std::byte* part : tensor->parts) drop_buffer_pages(part, tensor->bytes / tensor->parts.size());
  }
}

}  // namespace

Checkpoint open_checkpoint(const std::string& path, const LoadOptions& options, Numbers numbers, double* converting) {
  GgufOptions gguf;
  gguf.mmap = options.mmap;
  gguf.metadata_only = options.vocab_only;
  gguf.overrides = options.overrides;
  Checkpoint checkpoint = is_folder(path) ? read_hf_folder(path, options, numbers, converting) : read_gguf(path, gguf);
  replace_rope(options.rope, checkpoint);
  return checkpoint;
}

void replace_rope(const RopeOptions& rope, Checkpoint& checkpoint) {
  const auto put = [&](const char* field, const char* key, double value, double unset, double min, double max) {
    if (value == unset) return;
    if (!(value >= min && value <= max))  // NaN fails too
      throw Error(ErrorKind::usage, std::string("rope ") + field, "out of range", fmt::format("{}", value),
                  fmt::format("{} to {}, or {} for the file's", min, max, unset));
    checkpoint.metadata.insert_or_assign(key, Value{value, "f64"});
  };
  if (!rope.scaling.empty()) {
    if (rope.scaling != "none" && rope.scaling != "linear" && rope.scaling != "yarn" && rope.scaling != "dynamic")
      throw Error(ErrorKind::usage, "rope scaling", "unknown", '"' + escaped(rope.scaling) + '"',
                  "none, linear, yarn, dynamic");
    checkpoint.metadata.insert_or_assign(kRopeScalingKey, Value{rope.scaling, "string"});
  }
  if (rope.yarn_orig_ctx != 0) {
    if (rope.yarn_orig_ctx < 1 || rope.yarn_orig_ctx > kMaxContext)
      throw Error(ErrorKind::usage, "rope yarn_orig_ctx", "out of range", std::to_string(rope.yarn_orig_ctx),
                  "0 to " + std::to_string(kMaxContext));
    checkpoint.metadata.insert_or_assign(kRopeOriginalKey, Value{rope.yarn_orig_ctx, "i64"});
  }
  put("freq_base", kRopeBaseKey, rope.freq_base, 0, kMinRopeBase, kMaxRopeBase);
  const double factor = rope.freq_scale == 0 ? 0 : 1 / rope.freq_scale;
  put("freq_scale", kRopeFactorKey, factor, 0, kMinRopeFactor, kMaxRopeFactor);
  put("yarn_ext_factor", kRopeExtKey, rope.yarn_ext_factor, -1, 0, 1);
  put("yarn_attn_factor", kRopeAttnKey, rope.yarn_attn_factor, -1, 1e-3, 1e3);
  put("yarn_beta_fast", kRopeBetaFastKey, rope.yarn_beta_fast, -1, 1e-3, 1e6);
  put("yarn_beta_slow", kRopeBetaSlowKey, rope.yarn_beta_slow, -1, 1e-3, 1e6);
}

std::optional<Vocabulary> open_vocabulary(const Checkpoint& checkpoint) {
  return is_folder(checkpoint.path) ? read_hf_vocabulary(checkpoint.path) : vocabulary_from(checkpoint);
}

Weights pack_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, const LoadOptions& options) {
  // What is yet to be made keeps all threads busy; what lies in files a device is fed with by a few.
  const bool makes = std::ranges::any_of(checkpoint.tensors, [](const HostTensor& t) { return t.make != nullptr; });
  const int all = options.n_threads > 0 ? options.n_threads : cpu::default_threads();
  const int n_threads = makes ? std::max(all, backend.n_threads()) : backend.n_threads();
  // Pages that others still read are not dropped under their feet, but in long strides.
  const double step = (backend.memory_left() ? 1e9 : 16e6) / static_cast<double>(checkpoint.file_bytes + 1);
  const bool maps = makes || !backend.memory_left() || !checkpoint.read;
  double dropped = 0;
  auto progress = [&](double fraction) {
    if (maps && fraction - dropped >= step) {
      drop_mapped_pages(checkpoint);
      dropped = fraction;
    }
    return !options.progress || options.progress(fraction);
  };
  Weights weights = load_weights(checkpoint, config, backend, n_threads, options.check_tensors, progress);
  if (weights.packed_bytes > 0) drop_mapped_pages(checkpoint);
  drop_packed_copies(checkpoint, weights);
  return weights;
}

}  // namespace infer
