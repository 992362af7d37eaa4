// Functions of the driver are found through the runtime: the program is not linked with the driver.
#include "kernels/cuda/kernel_nodes.h"

#include <cuda.h>

#include "kernels/cuda/kernel_name.h"

namespace infer::cuda {
namespace {

/// Null where the driver has no such function.
template <class Function>
void find(Function& function, const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, 12030, cudaEnableDefault, &result);
#else
  const cudaError_t status = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (status != cudaSuccess) cudaGetLastError();
  const bool there = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
  function = there ? reinterpret_cast<Function>(found) : nullptr;
}

struct Driver {
  CUresult (*node_params)(CUgraphNode, CUDA_KERNEL_NODE_PARAMS_v2*) = nullptr;
  CUresult (*function_of)(CUfunction*, CUkernel) = nullptr;
  CUresult (*attribute)(int*, CUfunction_attribute, CUfunction) = nullptr;
  CUresult (*set_attribute)(CUfunction, CUfunction_attribute, int) = nullptr;
  CUresult (*blocks_per_sm)(int*, CUfunction, int, size_t) = nullptr;
  CUresult (*name)(const char**, CUfunction) = nullptr;
  Driver() {
    find(node_params, "cuGraphKernelNodeGetParams");
    find(function_of, "cuKernelGetFunction");
    find(attribute, "cuFuncGetAttribute");
    find(set_attribute, "cuFuncSetAttribute");
    find(blocks_per_sm, "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    find(name, "cuFuncGetName");
  }
  bool complete() const { return node_params && function_of && attribute && set_attribute && blocks_per_sm; }
};

/// False where the driver does not tell. most_shared: bytes that a block may have.
bool describe(const Driver& driver, cudaGraphNode_t node, int sm_threads, int most_shared, KernelUse& use) {
  CUDA_KERNEL_NODE_PARAMS_v2 p = {};
  if (driver.node_params(node, &p) != CUDA_SUCCESS) return false;
  CUfunction function = p.func;
  if (!function && (!p.kern || driver.function_of(&function, p.kern) != CUDA_SUCCESS)) return false;
  int local = 0, shared = 0;
  const auto get = [&](int& value, CUfunction_attribute which) {
    return driver.attribute(&value, which, function) == CUDA_SUCCESS;
  };
  if (!get(use.registers, CU_FUNC_ATTRIBUTE_NUM_REGS) || !get(local, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES) ||
      !get(shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES))
    return false;
  const char* symbol = nullptr;
  const bool named = driver.name && driver.name(&symbol, function) == CUDA_SUCCESS && symbol;
  use.name = named ? readable_kernel_name(symbol) : "?";
  use.n_launches = 1;
  use.n_blocks = int64_t{p.gridDimX} * p.gridDimY * p.gridDimZ;
  use.n_threads = static_cast<int>(p.blockDimX * p.blockDimY * p.blockDimZ);
  use.local_bytes = local;
  use.shared_bytes = int64_t{p.sharedMemBytes} + shared;
  // The driver counts by what the last launch of the kernel allowed, which may be less. What is allowed here holds for
  // all launches after, whatever the runtime allows then: so it is all there is.
  int allowed = 0;
  if (!get(allowed, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)) return false;
  if (allowed < static_cast<int>(p.sharedMemBytes) &&
      driver.set_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most_shared - shared) !=
          CUDA_SUCCESS)
    return false;
  if (driver.blocks_per_sm(&use.blocks_per_sm, function, use.n_threads, p.sharedMemBytes) != CUDA_SUCCESS) return false;
  use.occupancy = static_cast<double>(use.blocks_per_sm) * use.n_threads / sm_threads;
  return true;
}

}  // namespace

std::vector<KernelUse> kernel_uses(cudaGraph_t graph) {
  static const Driver driver;
  if (!driver.complete()) return {};
  int device = 0, sm_threads = 0, most_shared = 0;
  check(cudaGetDevice(&device), "kernels of a graph");
  check(cudaDeviceGetAttribute(&sm_threads, cudaDevAttrMaxThreadsPerMultiProcessor, device), "kernels of a graph");
  check(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "kernels of a graph");
  size_t n_nodes = 0;
  check(cudaGraphGetNodes(graph, nullptr, &n_nodes), "kernels of a graph");
  std::vector<cudaGraphNode_t> nodes(n_nodes);
  if (n_nodes > 0) check(cudaGraphGetNodes(graph, nodes.data(), &n_nodes), "kernels of a graph");
  std::vector<KernelUse> out;
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
    check(cudaGraphNodeGetType(node, &type), "kernels of a graph");
    KernelUse use;
    if (type == cudaGraphNodeTypeKernel && describe(driver, node, sm_threads, most_shared, use)) out.push_back(use);
  }
  return out;
}

}  // namespace infer::cuda
