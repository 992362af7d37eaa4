// wgmma_kernel for up to 16 tokens.
#include "kernels/cuda/matmul_wgmma.cuh"

namespace infer::cuda {

template void launch_wgmma<16>(DType, const WgmmaLaunch&, cudaStream_t);

}  // namespace infer::cuda
