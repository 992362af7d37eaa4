// mma_kernel for 8 tokens a CTA with the order of sums that 16 and 32 have.
#include "kernels/cuda/matmul_mma.cuh"

namespace infer::cuda {

void launch_mma_fixed(DType dtype, const MmaLaunch& launch, cudaStream_t stream) {
  launch_mma<1, 1>(dtype, launch, stream);
}

}  // namespace infer::cuda
