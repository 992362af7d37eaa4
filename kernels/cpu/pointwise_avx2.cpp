// The pointwise kernels for AVX2.
#include "kernels/cpu/pointwise_kernels.h"

namespace infer::cpu {

const PointwiseTable kAvx2Pointwise = kPointwiseHere;

}  // namespace infer::cpu
