// decode_kernel for 2 rows.
#include "kernels/cuda/decode_kernel.cuh"

namespace infer::cuda {

void launch_decode_2(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  launch_decode_rows<2>(launch, n_ctas, cooperative, stream);
}

}  // namespace infer::cuda
