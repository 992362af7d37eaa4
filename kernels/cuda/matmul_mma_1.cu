// mma_kernel for 8 tokens a CTA.
#include "kernels/cuda/matmul_mma.cuh"

namespace infer::cuda {

void launch_mma_1(DType dtype, const MmaLaunch& launch, cudaStream_t stream) { launch_mma<1>(dtype, launch, stream); }

}  // namespace infer::cuda
