// wgmma_kernel for up to 32 tokens.
#include "kernels/cuda/matmul_wgmma.cuh"

namespace infer::cuda {

template void launch_wgmma<32>(DType, const WgmmaLaunch&, cudaStream_t);

}  // namespace infer::cuda
