// What closes the products that cuBLASLt makes: the bias, and the activation of a gate and an up that were kept in bf16
// to halve their traffic. Products of few rows do both while they have the sums in registers (decode.cuh).
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;

unsigned blocks_for(int64_t n) {
  const int64_t blocks = ceil_div<int64_t>(n, kThreads);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

/// out[i] += bias[i % cols]. Grid: up to 4096 blocks of 256 threads, one number a thread and turn; no shared memory.
/// Moves 8 bytes a number (the bias stays in L1): bound by memory.
__global__ void add_bias_kernel(float* out, const float* bias, int64_t n, int64_t cols) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    out[i] += bias[i % cols];
  }
}

/// out = activation(gate) * up. Grid: up to 4096 blocks of 256 threads, 8 numbers a thread and turn; no shared memory.
/// Moves 6 bytes a number: bound by memory. Rows have row_eights eights, of gate and up `gap` more lie between them.
/// out may be gate where there is no gap: a thread writes only where it alone has read. Starts early.
template <Activation kActivation>
__global__ void activate_bf16_kernel(const uint4* gate, const uint4* up, uint4* out, uint32_t n_eights,
                                     uint32_t row_eights, uint32_t gap) {
  start_next_kernel();
  wait_for_previous_kernel();
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < n_eights; i += step) {
    const uint32_t at = i + i / row_eights * gap;
    const uint4 g = gate[at], u = up[at];
    const uint32_t from[4] = {g.x, g.y, g.z, g.w}, with[4] = {u.x, u.y, u.z, u.w};
    uint32_t to[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      to[j] = Bf16Type::pack(activated_fast<kActivation>(Bf16Type::low(from[j])) * Bf16Type::low(with[j]),
                             activated_fast<kActivation>(Bf16Type::high(from[j])) * Bf16Type::high(with[j]));
    }
    out[i] = make_uint4(to[0], to[1], to[2], to[3]);
  }
}

}  // namespace

void add_bias(const Tensor& out, const Tensor& bias, cudaStream_t stream) {
  const int64_t n = out.n_elements();
  if (n == 0) return;
  add_bias_kernel<<<blocks_for(n), kThreads, 0, stream>>>(out.as<float>(), bias.as<float>(), n, out.cols());
  check_launch("add_bias");
}

void activate_bf16(const ActivateArgs& a, cudaStream_t stream, int64_t stride) {
  const int64_t n_eights = a.out.n_elements() / 8, row_eights = a.out.cols() / 8;
  if (n_eights == 0) return;
  const int64_t gap = stride > 0 ? stride / 8 - row_eights : 0;
  if (n_eights + a.out.rows() * gap >= int64_t{1} << 31)
    throw Error(ErrorKind::run, "activate", "too many numbers", std::to_string(a.out.n_elements()));
  const auto kernel = a.activation == Activation::silu ? activate_bf16_kernel<Activation::silu>
                                                       : activate_bf16_kernel<Activation::gelu_tanh>;
  launch_early("activate_bf16", kernel, static_cast<int64_t>(blocks_for(n_eights)), kThreads, 0, stream,
               a.gate.as<uint4>(), a.up.as<uint4>(), a.out.as<uint4>(), static_cast<uint32_t>(n_eights),
               static_cast<uint32_t>(row_eights), static_cast<uint32_t>(gap));
}

}  // namespace infer::cuda
