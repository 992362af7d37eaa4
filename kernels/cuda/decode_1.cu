// decode_kernel for 1 row.
#include "kernels/cuda/decode_kernel.cuh"

namespace infer::cuda {

void launch_decode_1(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  launch_decode_rows<1>(launch, n_ctas, cooperative, stream);
}

}  // namespace infer::cuda
