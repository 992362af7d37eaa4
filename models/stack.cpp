// See stack.h. A backend packs a stack matrix by matrix at equal strides, which is what makes this possible.
#include "models/stack.h"

#include "quant/formats.h"

namespace infer {

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
    char* const to = static_cast<char*>(dst) + static_cast<size_t>(i) * stride;
    Tensor packed;
    if (source.make) {
      const int64_t skipped = tensor.first_row + i * slice_rows;
      packed = backend.pack_made(slice, tensor.role, to, [&](int64_t first, int64_t n_made, std::byte* made) {
        source.make(skipped + first, n_made, made);
      });
    } else {
      slice.data = const_cast<std::byte*>(source.parts[static_cast<size_t>(i)]);  // a view; nobody writes through it
      packed = backend.pack(slice, tensor.role, to);
    }
    out.dtype = packed.dtype;
    out.layout = packed.layout;
  }
  return out;
}

}  // namespace infer
