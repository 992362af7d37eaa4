// mma_kernel for 32 tokens a CTA.
#include "kernels/cuda/matmul_mma.cuh"

namespace infer::cuda {

void launch_mma_4(DType dtype, const MmaLaunch& launch, cudaStream_t stream) { launch_mma<4>(dtype, launch, stream); }

}  // namespace infer::cuda
