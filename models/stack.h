// Weights that do not lie in one piece in host memory: those whose slices lie apart (HostTensor::parts), and those that
// are yet to be made (HostTensor::make). They are packed slice by slice to where the backend would have put them had
// they lain together, so that nobody has to bring them together first; what is made is made beside the uploads of other
// threads.
#pragma once

#include "kernels/backend.h"
#include "models/weights.h"

namespace infer {

bool in_one_piece(const HostTensor& source);

/// Bytes of a tensor in the form of the file, whether its numbers are there or yet to be made.
size_t host_bytes(const Tensor& host);

/// Bytes that pack_tensor() fills; 0: the tensor is used where it lies.
size_t packed_bytes(const BoundTensor& tensor, const Backend& backend);

/// Backend::pack() for all kinds of tensors. `dst` has packed_bytes().
Tensor pack_tensor(const BoundTensor& tensor, const Backend& backend, void* dst);

}  // namespace infer
