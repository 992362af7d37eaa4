// Weights that do not lie in one piece in host memory: those whose slices lie apart (HostTensor::parts), and those that
// are yet to be made (HostTensor::make). They are packed slice by slice to where the backend would have put them had
// they lain together, so that nobody has to bring them together first; what is made is made beside the uploads of other
// threads. And those that are large are packed in parts, so that no thread is left with the largest when all others are
// done.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "models/weights.h"

namespace infer {

bool in_one_piece(const HostTensor& source);

/// Bytes of a tensor in the form of the file, whether its numbers are there or yet to be made.
size_t host_bytes(const Tensor& host);

/// Bytes that pack_tensor() fills; 0: the tensor is used where it lies.
size_t packed_bytes(const BoundTensor& tensor, const Backend& backend);

/// Indices [first, first + n) of the first dimension; of a vector all of them only.
BoundTensor part_of(const BoundTensor& tensor, int64_t first, int64_t n);

/// Indices [first, first + n) of the first dimension, packed from byte `begin` of the whole on.
struct WeightPart {
  int64_t first, n;
  size_t begin;
};
/// What may be packed by several threads (Backend::pack), of about `bytes` of the file each; one part where a backend
/// has no parts, and of columns.
std::vector<WeightPart> parts_of(const BoundTensor& tensor, const Backend& backend, size_t bytes);

/// Backend::pack() for all kinds of tensors. `dst` has packed_bytes(). `read`, if it is not empty, brings what lies in
/// files.
Tensor pack_tensor(const BoundTensor& tensor, const Backend& backend, void* dst, const ReadBytes& read = {});

}  // namespace infer
