// mma_kernel for 16 tokens a CTA.
#include "kernels/cuda/matmul_mma.cuh"

namespace infer::cuda {

void launch_mma_2(DType dtype, const MmaLaunch& launch, cudaStream_t stream) { launch_mma<2>(dtype, launch, stream); }

}  // namespace infer::cuda
