// decode_kernel for 1 row and what few models have.
#include "kernels/cuda/decode_kernel.cuh"

namespace infer::cuda {

void launch_decode_1_experts(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  launch_decode_rows<1, true>(launch, n_ctas, cooperative, stream);
}

}  // namespace infer::cuda
