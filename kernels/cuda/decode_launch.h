// The host's side of the decode kernel: which instance runs a launch.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/program.h"

namespace infer::cuda {

/// Runs stages [begin, end) on `n_ctas` CTAs; cooperative when they are several, since they wait for each other.
void launch_decode(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream);
/// What launches on the current device may plan with; the kernel's own static shared memory is taken off.
ProgramLimits decode_limits();
/// Each defined in a file of its own, so that they compile side by side.
void launch_decode_1(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);
void launch_decode_1_experts(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);
void launch_decode_2(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);
void launch_decode_4(const DecodeLaunch&, int n_ctas, bool cooperative, cudaStream_t);

}  // namespace infer::cuda
