// wgmma_kernel for up to 8 tokens, and how many clusters of it run at once.
#include "kernels/cuda/matmul_wgmma.cuh"

namespace infer::cuda {

int wgmma_clusters(int n_ctas, int shared_bytes) {
  const auto kernel = wgmma_kernel<Q8_0, 8>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "matmul_wgmma");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(n_ctas), cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(n_ctas);
  config.blockDim = kWgmmaThreads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &cluster, config.numAttrs = 1;
  int n = 0;
  check(cudaOccupancyMaxActiveClusters(&n, kernel, &config), "matmul_wgmma");
  return n;
}

template void launch_wgmma<8>(DType, const WgmmaLaunch&, cudaStream_t);

}  // namespace infer::cuda
