// Makers of operands (operand.h): from f32 as it is, and its norm. A thread takes four columns that lie side by side,
// which are two pairs of neighbours there. Both start while the kernel before them runs, and let the next one start.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/int8_groups.cuh"
#include "kernels/cuda/matmul_int8.h"

namespace infer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kNormThreads = 512;
constexpr int kKept = 4;  ///< quads of a row that a thread of the norm keeps in registers

__device__ __forceinline__ void put_quad(uint32_t* operand, int tokens, int token, int64_t column, float4 v) {
  const int64_t at = operand_place(tokens, token, column) / 2;
  operand[at] = Bf16Type::pack(v.x, v.z);
  operand[at + 32] = Bf16Type::pack(v.y, v.w);  // the other core matrix
}

/// Grid: threads over [m, k / 4]. Bytes: 4 in, 2 out for each number; bound by the launch.
__global__ void __launch_bounds__(kThreads)
    arrange_kernel(const float4* x, uint32_t* operand, int tokens, int n_quads, int64_t n) {
  start_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int token = static_cast<int>(i / n_quads), quad = static_cast<int>(i % n_quads);
  put_quad(operand, tokens, token, 4 * quad, x[i]);
}

/// Grid: a block to a token. The row is read once where it has up to 8192 numbers. The weights are there before the
/// kernel before is done.
__global__ void __launch_bounds__(kNormThreads)
    norm_operand_kernel(const float4* x, const float4* weight, float eps, uint32_t* operand, int tokens, int n_quads) {
  __shared__ float warps[kNormThreads / 32];
  start_next_kernel();
  float4 kept[kKept], w[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int quad = threadIdx.x + i * kNormThreads;
    w[i] = quad < n_quads ? weight[quad] : float4{};
  }
  wait_for_previous_kernel();
  const float4* row = x + static_cast<int64_t>(blockIdx.x) * n_quads;
  float squares = 0;
  const auto square = [&](float4 v) { squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int quad = threadIdx.x + i * kNormThreads;
    kept[i] = quad < n_quads ? row[quad] : float4{};
  }
#pragma unroll
  for (const float4& v : kept) square(v);
  for (int quad = threadIdx.x + kKept * kNormThreads; quad < n_quads; quad += kNormThreads) square(row[quad]);
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (const float of_warp : warps) sum += of_warp;
  const float inverse = inverse_rms(sum, 4 * n_quads, eps);
  const auto put = [&](int quad, float4 v, float4 by) {
    put_quad(operand, tokens, static_cast<int>(blockIdx.x), 4 * quad,
             make_float4(v.x * inverse * by.x, v.y * inverse * by.y, v.z * inverse * by.z, v.w * inverse * by.w));
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int quad = threadIdx.x + i * kNormThreads;
    if (quad < n_quads) put(quad, kept[i], w[i]);
  }
  for (int quad = threadIdx.x + kKept * kNormThreads; quad < n_quads; quad += kNormThreads)
    put(quad, row[quad], weight[quad]);
}

constexpr int kInt8Threads = 512;

/// Grid: a block to a token. The row is read once where it has up to 8192 numbers.
__global__ void __launch_bounds__(kInt8Threads)
    norm_int8_kernel(const float* x, const float* weight, float eps, uint8_t* operand, int n) {
  constexpr int kStep = kInt8Threads * 8, kKeptSteps = 2;
  __shared__ float warps[kInt8Threads / 32];
  start_next_kernel();
  const int token = static_cast<int>(blockIdx.x), column = threadIdx.x * 8;
  Eight kept[kKeptSteps], w[kKeptSteps];
#pragma unroll
  for (int i = 0; i < kKeptSteps; ++i)
    if (column + i * kStep < n) w[i].load_f32(weight + column + i * kStep);
  wait_for_previous_kernel();
  const float* row = x + static_cast<int64_t>(token) * n;
  float squares = 0;
  const auto square = [&](const Eight& v) {
#pragma unroll
    for (const float number : v.x) squares = fmaf(number, number, squares);
  };
#pragma unroll
  for (int i = 0; i < kKeptSteps; ++i)
    if (column + i * kStep < n) kept[i].load_f32(row + column + i * kStep), square(kept[i]);
  for (int at = column + kKeptSteps * kStep; at < n; at += kStep) {
    Eight v;
    v.load_f32(row + at), square(v);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (const float of_warp : warps) sum += of_warp;
  const float inverse = inverse_rms(sum, n, eps);
  const auto put = [&](Eight& v, const Eight& by, int at) {
#pragma unroll
    for (int e = 0; e < 8; ++e) v.x[e] *= by.x[e];
    put_group(operand, at / 32, token, v, at < n, inverse);
  };
#pragma unroll
  for (int i = 0; i < kKeptSteps; ++i)
    if (i * kStep < n) put(kept[i], w[i], column + i * kStep);
  for (int first = kKeptSteps * kStep; first < n; first += kStep) {
    const int at = first + column;
    Eight v, by;
    if (at < n) v.load_f32(row + at), by.load_f32(weight + at);
    put(v, by, at);
  }
}

}  // namespace

void norm_int8(const Tensor& x, const Tensor& weight, float eps, void* operand, cudaStream_t stream) {
  launch_early("norm_int8", norm_int8_kernel, x.rows(), kInt8Threads, 0, stream, x.as<float>(), weight.as<float>(), eps,
               static_cast<uint8_t*>(operand), static_cast<int>(x.cols()));
}

void arrange_operand(const Tensor& x, void* operand, cudaStream_t stream) {
  const int64_t m = x.rows(), k = x.cols(), n = m * k / 4;
  launch_early("arrange_operand", arrange_kernel, ceil_div<int64_t>(n, kThreads), kThreads, 0, stream, x.as<float4>(),
               static_cast<uint32_t*>(operand), operand_tokens(m), static_cast<int>(k / 4), n);
}

void norm_operand(const Tensor& x, const Tensor& weight, float eps, void* operand, cudaStream_t stream) {
  launch_early("norm_operand", norm_operand_kernel, x.rows(), kNormThreads, 0, stream, x.as<float4>(),
               weight.as<float4>(), eps, static_cast<uint32_t*>(operand), operand_tokens(x.rows()),
               static_cast<int>(x.cols() / 4));
}

}  // namespace infer::cuda
