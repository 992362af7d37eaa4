// Stands where kernels/cuda would when the build found no nvcc: the backend exists by name and says why it cannot run.
// Plans can still be made for it.
#include "kernels/cuda/cuda_row.h"
#include "kernels/cuda/limits.h"
#include "kernels/cuda/sizes.h"

namespace infer {
namespace {

[[noreturn]] void refuse() { throw Error(ErrorKind::run, "device", "cuda cannot be used: " + cuda_unusable_reason(0)); }

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) { refuse(); }

std::string cuda_unusable_reason(int) { return "this program was built without CUDA"; }

int cuda_device_count() { return 0; }

const DeviceRow kCudaDevices = {
    cuda_device_count,   cuda_unusable_reason, [](int) -> std::string { return "cuda"; },
    cuda::refusal,       cuda::packed_bytes,   cuda::scratch_bytes,
    cuda::kContextBytes, cuda::slow_cache,
};

}  // namespace infer

namespace infer::cuda {

double read_bandwidth_gbps() { refuse(); }
double tensor_peak_tflops() { refuse(); }
CopySpeeds copy_speeds(int) { refuse(); }
std::vector<DeviceFacts> device_facts(bool) { return {}; }

}  // namespace infer::cuda
