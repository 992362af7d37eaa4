// Weights whose slices lie apart in host memory (HostTensor::parts): packed slice by slice to where the backend would
// have put them had they lain together, so that nobody has to copy them first.
#pragma once

#include "kernels/backend.h"
#include "models/weights.h"

namespace infer {

/// Bytes that pack_tensor() fills; 0: the tensor is used where it lies.
size_t packed_bytes(const BoundTensor& tensor, const Backend& backend);

/// Backend::pack() for tensors in one piece and in parts. `dst` has packed_bytes().
Tensor pack_tensor(const BoundTensor& tensor, const Backend& backend, void* dst);

}  // namespace infer
