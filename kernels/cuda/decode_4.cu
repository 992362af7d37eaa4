// decode_kernel for 4 rows (or 3).
#include "kernels/cuda/decode_kernel.cuh"

namespace infer::cuda {

void launch_decode_4(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  launch_decode_rows<4>(launch, n_ctas, cooperative, stream);
}

}  // namespace infer::cuda
