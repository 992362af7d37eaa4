// wgmma_pair_kernel for up to 16 tokens.
#include "kernels/cuda/matmul_wgmma.cuh"

namespace infer::cuda {

template void launch_wgmma_pair<16>(DType, DType, const WgmmaPairLaunch&, cudaStream_t);

}  // namespace infer::cuda
