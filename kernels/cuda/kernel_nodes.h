// What a captured graph says about its kernels: how each is launched, what it takes of an SM, and what an SM has room
// for. The driver is asked, since cuBLASLt's kernels are none of this program's; a driver that lacks a function tells
// nothing.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device.h"

namespace infer::cuda {

/// One for each kernel node, in the graph's order. Of the current device.
std::vector<KernelUse> kernel_uses(cudaGraph_t graph);

}  // namespace infer::cuda
