// See stack.h. A backend packs a stack matrix by matrix at equal strides, which is what makes this possible.
#include "models/stack.h"

#include <atomic>
#include <memory>

#include "kernels/cpu/memory.h"
#include "quant/formats.h"

namespace infer {
namespace {

/// Memory of this thread, which keeps it until it ends: the threads of load_weights() do so with loading.
std::byte* scratch(size_t bytes) {
  thread_local std::shared_ptr<void> memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset();
    memory = cpu::map_memory(bytes, std::make_shared<std::atomic<int64_t>>(0));
    size = bytes;
  }
  return static_cast<std::byte*>(memory.get());
}

}  // namespace

bool in_one_piece(const HostTensor& source) { return source.parts.empty() && !source.make; }

size_t host_bytes(const Tensor& host) {
  return static_cast<size_t>(tensor_bytes(host.dtype, host.n_elements() / host.cols(), host.cols()));
}

size_t packed_bytes(const BoundTensor& tensor, const Backend& backend) {
  const size_t bytes = backend.packed_bytes(tensor.host, tensor.role);
  // What a backend uses in place it wants in one piece.
  const bool gathered = bytes == 0 && !in_one_piece(*tensor.source);
  return gathered ? host_bytes(tensor.host) : bytes;
}

Tensor pack_tensor(const BoundTensor& tensor, const Backend& backend, void* dst) {
  const HostTensor& source = *tensor.source;
  if (in_one_piece(source)) return backend.pack(tensor.host, tensor.role, dst);
  const Tensor& host = tensor.host;
  Tensor out = host;
  out.data = dst;
  const int64_t rows = host.n_elements() / host.cols();
  if (backend.packed_bytes(host, tensor.role) == 0) {
    source.copy_rows(tensor.first_row, rows, static_cast<std::byte*>(dst));
    return out;
  }
  Tensor slice = host;
  const bool stack = !source.parts.empty() || host.n_dims == 3;
  if (stack) {
    slice.n_dims -= 1;
    for (int32_t d = 0; d < 4; ++d) slice.dims[d] = d < slice.n_dims ? host.dims[d + 1] : 1;
  }
  const int64_t n = stack ? host.dims[0] : 1, slice_rows = rows / n;
  const size_t stride = packed_bytes(tensor, backend) / static_cast<size_t>(n);
  for (int64_t i = 0; i < n; ++i) {
    if (source.make) {
      std::byte* const made = scratch(host_bytes(slice));
      source.make(tensor.first_row + i * slice_rows, slice_rows, made);
      slice.data = made;
    } else {
      slice.data = const_cast<std::byte*>(source.parts[static_cast<size_t>(i)]);  // a view; nobody writes through it
    }
    const Tensor packed = backend.pack(slice, tensor.role, static_cast<char*>(dst) + static_cast<size_t>(i) * stride);
    out.dtype = packed.dtype;
    out.layout = packed.layout;
  }
  return out;
}

}  // namespace infer
