// The loops that limits.cpp times: reading memory, and making numbers to work on.
#include "kernels/cuda/device.h"
#include "kernels/cuda/launchers.h"
#include "quant/half.h"

namespace infer::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerSm = 2;
constexpr int kUnroll = 8;

__device__ uint4 load_once(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

/// Reads n groups of 16 bytes. Grid: 2 blocks of 512 threads an SM, each thread 8 loads of 16 bytes in flight; no
/// shared memory. Bound by memory, which is the point. The sum is only there so that no load is thrown away.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) read_kernel(const uint4* data, int64_t n, uint32_t* sink) {
  const int64_t width = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  uint32_t sum = 0;
  int64_t i = thread;
  for (; i + (kUnroll - 1) * width < n; i += kUnroll * width) {
    uint4 v[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) v[j] = load_once(data + i + j * width);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < n; i += width) {
    const uint4 v = load_once(data + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x9e3779b9u) sink[0] = sum;
}

/// n random bf16 numbers in (-1, 1), two to a thread and turn, from a hash of their place. Grid: 2 blocks of 512
/// threads an SM. Power, and so the clock, depends on the bits that flip: zeros would measure too much.
__global__ void random_bf16_kernel(uint32_t* out, int64_t n_pairs) {
  const int64_t width = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_pairs; i += width) {
    uint32_t h = static_cast<uint32_t>(i) * 0x9e3779b9u + 0x7f4a7c15u;
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    h ^= h >> 16;
    const float low = static_cast<float>(h & 0xffff) / 32768.0f - 1.0f;
    const float high = static_cast<float>(h >> 16) / 32768.0f - 1.0f;
    out[i] = f32_to_bf16(low) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
  }
}

}  // namespace

void read_memory(const void* data, size_t bytes, uint32_t* sink, int n_sms, cudaStream_t stream) {
  read_kernel<<<static_cast<unsigned>(n_sms * kBlocksPerSm), kThreads, 0, stream>>>(
      static_cast<const uint4*>(data), static_cast<int64_t>(bytes / sizeof(uint4)), sink);
  check(cudaGetLastError(), "read_memory");
}

void random_bf16(void* out, int64_t n, int n_sms, cudaStream_t stream) {
  random_bf16_kernel<<<static_cast<unsigned>(n_sms * kBlocksPerSm), kThreads, 0, stream>>>(static_cast<uint32_t*>(out),
                                                                                           n / 2);
  check(cudaGetLastError(), "random_bf16");
}

}  // namespace infer::cuda
