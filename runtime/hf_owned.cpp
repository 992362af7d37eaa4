// See hf_owned.h.
#include "runtime/hf_owned.h"

#include <cstring>

#include "kernels/tensor.h"
#include "quant/formats.h"

namespace infer {

std::byte* OwnedBytes::add(size_t bytes) {
  buffers.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
  return buffers.back().get();
}

std::shared_ptr<OwnedBytes> own_storage(Checkpoint& checkpoint) {
  auto owned = std::make_shared<OwnedBytes>();
  owned->files = std::move(checkpoint.storage);
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
