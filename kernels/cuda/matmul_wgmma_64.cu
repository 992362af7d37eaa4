// wgmma_kernel for up to 64 tokens.
#include "kernels/cuda/matmul_wgmma.cuh"

namespace infer::cuda {

template void launch_wgmma<64>(DType, const WgmmaLaunch&, cudaStream_t);

}  // namespace infer::cuda
