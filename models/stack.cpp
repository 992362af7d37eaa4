// See stack.h. A backend packs a stack matrix by matrix at equal strides, which is what makes this possible.
#include "models/stack.h"

#include <algorithm>

#include "quant/formats.h"

namespace infer {
namespace {

/// What lies in memory, or in pages of a file that `read` can bring. dst: null for what is used where it lies.
Tensor pack_lying(const Tensor& host, WeightRole role, const Backend& backend, void* dst, const ReadBytes& read) {
  if (!read || !dst) return backend.pack(host, role, dst);
  const auto row = static_cast<size_t>(row_bytes(host.dtype, host.cols()));
  Tensor shape = host;
  shape.data = nullptr;
  return backend.pack_made(shape, role, dst, [&](int64_t first, int64_t n, std::byte* to) {
    const std::byte* const from = host.as<std::byte>() + static_cast<size_t>(first) * row;
    copy_bytes(read, from, static_cast<size_t>(n) * row, to);
  });
}

/// The columns of which a backend makes all of this tensor; null where it has other ways only.
const ColumnCodes* columns_of(const BoundTensor& tensor, const Backend& backend) {
  const ColumnCodes* const columns = tensor.source->columns.get();
  const bool whole = columns && tensor.host.n_dims == 2 && tensor.host.rows() == columns->rows;
  return whole && is_matrix(tensor.role) && backend.packs_columns(tensor.host, *columns) ? columns : nullptr;
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

BoundTensor part_of(const BoundTensor& tensor, int64_t first, int64_t n) {
  BoundTensor part = tensor;
  const int64_t rows = tensor.host.n_elements() / tensor.host.cols() / tensor.host.dims[0];  // of one index
  part.host.dims[0] = n;
  part.first_row += first * rows;
  if (in_one_piece(*tensor.source))
    part.host.data = part.host.as<char>() + tensor_bytes(tensor.host.dtype, first * rows, tensor.host.cols());
  return part;
}

std::vector<WeightPart> parts_of(const BoundTensor& tensor, const Backend& backend, size_t bytes) {
  const int64_t all = tensor.host.dims[0];
  if (tensor.role == WeightRole::vector || tensor.host.n_dims < 2 || packed_bytes(tensor, backend) == 0 ||
      columns_of(tensor, backend))
    return {{0, all, 0}};
  const int64_t step = tensor.host.n_dims == 3 ? 1 : Backend::kRowsApart;
  const size_t step_bytes = std::max<size_t>(host_bytes(part_of(tensor, 0, std::min(step, all)).host), 1);
  const int64_t n = step * std::max(static_cast<int64_t>(bytes / step_bytes), int64_t{1});
  std::vector<WeightPart> parts;
  for (int64_t first = 0; first < all; first += n)
    parts.push_back(
        {first, std::min(n, all - first), first > 0 ? packed_bytes(part_of(tensor, 0, first), backend) : 0});
  return parts;
}

Tensor pack_tensor(const BoundTensor& tensor, const Backend& backend, void* dst, const ReadBytes& read) {
  const HostTensor& source = *tensor.source;
  if (in_one_piece(source)) return pack_lying(tensor.host, tensor.role, backend, dst, read);
  if (const ColumnCodes* columns = columns_of(tensor, backend))
    return backend.pack_columns(tensor.host, tensor.role, dst, *columns);
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
  const int64_t n = stack ? host.dims[0] : 1, slice_rows = rows / n, first_slice = tensor.first_row / slice_rows;
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
      slice.data = const_cast<std::byte*>(
          source.parts[static_cast<size_t>(first_slice + i)]);  // a view; nobody writes through it
      packed = pack_lying(slice, tensor.role, backend, to, read);
    }
    out.dtype = packed.dtype;
    out.layout = packed.layout;
  }
  return out;
}

}  // namespace infer
