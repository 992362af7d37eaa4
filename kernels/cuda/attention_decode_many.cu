// attention_decode_kernel in blocks of 4 warps.
#include "kernels/cuda/attention_steps.cuh"

namespace infer::cuda {

template bool launch_attention_step<4>(const AttentionStep&, int, cudaStream_t);

}  // namespace infer::cuda
