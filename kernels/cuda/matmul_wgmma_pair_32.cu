// wgmma_pair_kernel for up to 32 tokens.
#include "kernels/cuda/matmul_wgmma.cuh"

namespace infer::cuda {

template void launch_wgmma_pair<32>(DType, DType, const WgmmaPairLaunch&, cudaStream_t);

}  // namespace infer::cuda
