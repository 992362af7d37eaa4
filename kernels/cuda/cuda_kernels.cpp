// What profilers ask the CUDA backend besides times: which kernels an op or a recorded step launches, found by
// capturing the launches instead of making them, and which numbers its steps go by.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/kernel_nodes.h"

namespace infer::cuda {

std::vector<KernelUse> CudaBackend::kernels_of(const std::function<void()>& fn) {
  if (watch_.syncs()) return {};  // waits for every launch, which a capture does not allow
  use_device();
  const Graph graph = captured(fn);
  return kernel_uses(graph.get());
}

std::vector<KernelUse> CudaBackend::kernels_of_step(uint64_t key) {
  const auto found = recorded_.find(key);
  if (found == recorded_.end() || !found->second.program || !persists() || watch_.syncs()) return {};
  const Program& program = *found->second.program;
  return kernels_of([&] { launch_decode(program.launch[0], program.n_ctas, true, stream_.get()); });
}

std::vector<FormatCrossovers> CudaBackend::crossovers() const {
  std::vector<FormatCrossovers> out;
  for (const DType format : needs_.matrix_formats) out.push_back({device_.name, format, crossovers_.at(format)});
  return out;
}

}  // namespace infer::cuda
