// Weights into their packed form (once, at load) and back out as 16-bit rows (for the products of prompts). Both are
// one thread per row and group of 32; what a group looks like is packed.h's and unpack.cuh's business.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "infer/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/unpack.cuh"

namespace infer::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

// Grid: one thread per (row, group). Bytes: file bytes in, as many out. Bound by scattered byte stores, at several
// times the speed of PCIe.
template <class F>
__global__ void pack_kernel(const typename F::Block* blocks, int64_t row_begin, int64_t n_rows, int64_t cols,
                            uint8_t* packed) {
  constexpr int kBlockGroups = F::block / kGroup;
  const int64_t groups = cols / kGroup, i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n_rows * groups) return;
  const int64_t row = i / groups, g = i % groups;
  const PackedPlace p = place<F>(cols, row_begin + row, g);
  const typename F::Block& block = blocks[row * (groups / kBlockGroups) + g / kBlockGroups];
  pack_group<F>(block, static_cast<int>(g % kBlockGroups), packed + p.chunk, {p.groups}, p.row, p.group);
}

__device__ __forceinline__ uint32_t two_16(float a, float b, bool bf16) {
  if (bf16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
  const __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Grid: one thread per (row, group). Bytes: packed bytes in, 64 out per group, which bounds it.
template <class F>
__global__ void dequantize_kernel(const uint8_t* packed, int64_t row_begin, int64_t n_rows, int64_t cols, bool bf16,
                                  uint8_t* out) {
  const int64_t groups = cols / kGroup, i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n_rows * groups) return;
  const int64_t row = i / groups, g = i % groups;
  const PackedPlace p = place<F>(cols, row_begin + row, g);
  const uint8_t* chunk = packed + p.chunk;
  const Chunk<F> c{p.groups};
  uint32_t q[8];
  load_quads<F>(chunk, c, p.row, p.group, q);
  const GroupScales s = load_scales<F>(chunk, c, p.row, p.group);
  constexpr int kBias = Packed<F>::bias == kTable ? 0 : Packed<F>::bias;
  uint32_t words[16];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float w[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int code = static_cast<int>(static_cast<int8_t>(q[j] >> (8 * b))) - kBias;
      w[b] = s.scale[j / 4] * static_cast<float>(code) + s.offset[j / 4];
    }
    words[2 * j] = two_16(w[0], w[1], bf16), words[2 * j + 1] = two_16(w[2], w[3], bf16);
  }
  auto* to = reinterpret_cast<uint4*>(out + (row * cols + g * kGroup) * 2);
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = make_uint4(words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3]);
}

__global__ void narrow_kernel(const float* from, int64_t stride, int64_t n_rows, int64_t cols, bool bf16,
                              uint16_t* out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n_rows * cols) return;
  const float x = from[i / cols * stride + i % cols];
  out[i] = bf16 ? f32_to_bf16(x) : f32_to_f16(x);
}

}  // namespace

void pack_rows(DType dtype, const void* blocks, int64_t row_begin, int64_t n_rows, const Tensor& packed,
               cudaStream_t stream) {
  const int64_t cols = packed.cols();
  if (n_rows <= 0) return;
  visit_format(dtype, [&]<class F>() {
    if constexpr (F::block == 1) {
      const auto width = static_cast<size_t>(cols) * sizeof(typename F::Block);
      const auto stride = static_cast<size_t>(row_major_stride(sizeof(typename F::Block), cols));
      check(cudaMemcpy2DAsync(packed.as<char>() + static_cast<size_t>(row_begin) * stride, stride, blocks, width, width,
                              static_cast<size_t>(n_rows), cudaMemcpyDeviceToDevice, stream),
            "pack rows");
    } else {
      pack_kernel<F><<<blocks_for(n_rows * (cols / kGroup)), kThreads, 0, stream>>>(
          static_cast<const typename F::Block*>(blocks), row_begin, n_rows, cols, packed.as<uint8_t>());
      check(cudaGetLastError(), "pack");
    }
  });
}

void dequantize_rows(const Tensor& packed, int64_t row_begin, int64_t n_rows, const Tensor& out, cudaStream_t stream) {
  const int64_t cols = packed.cols();
  const bool bf16 = out.dtype == DType::BF16;
  if (n_rows <= 0) return;
  visit_format(packed.dtype, [&]<class F>() {
    if constexpr (F::block > 1) {
      dequantize_kernel<F><<<blocks_for(n_rows * (cols / kGroup)), kThreads, 0, stream>>>(
          packed.as<uint8_t>(), row_begin, n_rows, cols, bf16, out.as<uint8_t>());
    } else if constexpr (F::id == DType::F32) {
      const int64_t stride = row_major_stride(sizeof(float), cols) / 4;
      narrow_kernel<<<blocks_for(n_rows * cols), kThreads, 0, stream>>>(packed.as<float>() + row_begin * stride, stride,
                                                                        n_rows, cols, bf16, out.as<uint16_t>());
    }
  });
  check(cudaGetLastError(), "dequantize");
}

}  // namespace infer::cuda
