// See hf_owned.h.
#include "runtime/hf_owned.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernels/cpu/memory.h"
#include "kernels/tensor.h"
#include "models/parallel.h"
#include "quant/formats.h"
#include "runtime/pages.h"

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

void make_numbers(Checkpoint& checkpoint, int n_threads, const std::function<bool(double)>& progress) {
  std::vector<HostTensor*> tensors;
  std::vector<double> work;
  for (HostTensor& tensor : checkpoint.tensors) {
    if (!tensor.make) continue;
    tensors.push_back(&tensor);
    work.push_back(static_cast<double>(tensor.bytes));
  }
  if (tensors.empty()) return;
  const std::shared_ptr<OwnedBytes> owned = own_storage(checkpoint);
  const auto make = [&](size_t i) {
    HostTensor& tensor = *tensors[i];
    std::byte* const data = owned->add(tensor.bytes);
    tensor.make(0, tensor.n_elements() / tensor.dims.back(), data);
    if (checkpoint.mapped)
      for (const auto& part : tensor.made_of) drop_file_pages(part.data(), part.size());
    tensor.data = data;
    tensor.owned = true;
    tensor.make = nullptr;
    tensor.columns = nullptr;
    tensor.made_of.clear();
  };
  if (!run_parallel(work, n_threads, make, progress))
    throw Error(ErrorKind::run, escaped(checkpoint.path), "loading was cancelled");
}

std::vector<float> owned_floats(const Checkpoint& checkpoint, const HostTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.n_elements()));
  std::vector<std::byte> made(tensor.make ? tensor.bytes : 0);
  if (tensor.make) tensor.make(0, tensor.n_elements() / tensor.dims.back(), made.data());
  if (!decode_row(tensor.dtype, tensor.make ? made.data() : tensor.data, values.data(), tensor.n_elements()))
    checkpoint.refuse(tensor.name, "unsupported format for this tensor", format_name(tensor.dtype), "F32, F16, BF16");
  return values;
}

HostTensor owned_tensor(OwnedBytes& owned, const HostTensor& like, const std::vector<float>& values) {
  HostTensor out = like;
  out.make = nullptr;
  out.columns = nullptr;
  out.made_of.clear();
  out.dtype = DType::F32;
  out.bytes = values.size() * sizeof(float);
  std::byte* data = owned.add(out.bytes);
  std::memcpy(data, values.data(), out.bytes);
  out.data = data;
  out.owned = true;
  return out;
}

}  // namespace infer
