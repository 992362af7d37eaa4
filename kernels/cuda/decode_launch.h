// The host's side of the decode kernel: which instance runs a launch.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/program.h"

namespace infer::cuda {

/// Runs stages [begin, end) on `n_ctas` CTAs; cooperative when they are several, since they wait for each other.
void launch_decode(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream);
/// Shared memory that a launch may plan with, in bytes; the kernel's own static part is taken off.
int64_t decode_shared_bytes(const DeviceInfo& device);
/// Defined in decode_1.cu, decode_2.cu and decode_4.cu, which compile side by side.
void launch_decode_1(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);
void launch_decode_2(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);
void launch_decode_4(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);

}  // namespace infer::cuda
