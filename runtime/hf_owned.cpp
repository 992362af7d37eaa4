// See hf_owned.h.
#include "runtime/hf_owned.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernels/cpu/memory.h"
#include "kernels/tensor.h"
#include "quant/formats.h"

namespace infer {

std::byte* OwnedBytes::add(size_t bytes) {
  constexpr size_t kSlabBytes = size_t{64} << 20, kLine = 64;
  const size_t taken = (bytes + kLine - 1) / kLine * kLine;
  const std::lock_guard lock(mutex_);
  if (taken > left_) {
    left_ = std::max(taken, kSlabBytes);
    slabs_.push_back(cpu::map_memory(left_, std::make_shared<std::atomic<int64_t>>(0)));
    next_ = static_cast<std::byte*>(slabs_.back().get());
  }
  left_ -= taken;
  return std::exchange(next_, next_ + taken);
}

std::shared_ptr<OwnedBytes> own_storage(Checkpoint& checkpoint) {
  auto owned = std::make_shared<OwnedBytes>(std::move(checkpoint.storage));
  checkpoint.storage = owned;
  return owned;
}

std::vector<float> owned_floats(const Checkpoint& checkpoint, const HostTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.n_elements()));
  if (!decode_row(tensor.dtype, tensor.data, values.data(), tensor.n_elements()))
    checkpoint.refuse(tensor.name, "unsupported format for this tensor", format_name(tensor.dtype), "F32, F16, BF16");
  return values;
}

HostTensor owned_tensor(OwnedBytes& owned, const HostTensor& like, const std::vector<float>& values) {
  HostTensor out = like;
  out.dtype = DType::F32;
  out.bytes = values.size() * sizeof(float);
  std::byte* data = owned.add(out.bytes);
  std::memcpy(data, values.data(), out.bytes);
  out.data = data;
  out.owned = true;
  return out;
}

}  // namespace infer
