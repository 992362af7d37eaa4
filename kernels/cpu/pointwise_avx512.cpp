// The pointwise kernels for AVX-512.
#include "kernels/cpu/pointwise_kernels.h"

namespace infer::cpu {

const PointwiseTable kAvx512Pointwise = kPointwiseHere;

}  // namespace infer::cpu
