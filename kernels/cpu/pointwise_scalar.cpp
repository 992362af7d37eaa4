// The pointwise kernels for any x86-64.
#include "kernels/cpu/pointwise_kernels.h"

namespace infer::cpu {

const PointwiseTable kScalarPointwise = kPointwiseHere;

}  // namespace infer::cpu
