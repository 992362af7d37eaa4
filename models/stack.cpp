// See stack.h. A backend packs a stack matrix by matrix at equal strides, which is what makes this possible.
#include "models/stack.h"

#include <cstring>

namespace infer {

size_t packed_bytes(const BoundTensor& tensor, const Backend& backend) {
  const size_t bytes = backend.packed_bytes(tensor.host, tensor.role);
  // What a backend uses in place it wants in one piece.
  return bytes == 0 && !tensor.source->parts.empty() ? tensor.source->bytes : bytes;
}

Tensor pack_tensor(const BoundTensor& tensor, const Backend& backend, void* dst) {
  const std::vector<const std::byte*>& parts = tensor.source->parts;
  if (parts.empty()) return backend.pack(tensor.host, tensor.role, dst);
  const bool copied = backend.packed_bytes(tensor.host, tensor.role) == 0;
  const size_t stride = packed_bytes(tensor, backend) / parts.size();
  Tensor slice = tensor.host;
  slice.n_dims -= 1;
  for (int32_t d = 0; d < 4; ++d) slice.dims[d] = d < slice.n_dims ? tensor.host.dims[d + 1] : 1;
  Tensor out = tensor.host;
  out.data = dst;
  for (size_t i = 0; i < parts.size(); ++i) {
    char* to = static_cast<char*>(dst) + i * stride;
    if (copied) {
      std::memcpy(to, parts[i], stride);
      continue;
    }
    slice.data = const_cast<std::byte*>(parts[i]);  // a view; nobody writes through it
    const Tensor packed = backend.pack(slice, tensor.role, to);
    out.dtype = packed.dtype;
    out.layout = packed.layout;
  }
  return out;
}

}  // namespace infer
