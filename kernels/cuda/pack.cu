// Weights into their packed form (once, at load) and back out as rows of 16 bits or of e4m3 (for the products of
// prompts). What a group of 32 looks like is packed.h's and unpack.cuh's business.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "infer/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/e4m3.h"
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

/// What is too large for f16 becomes its largest number instead of infinity; NaN stays NaN.
__device__ __forceinline__ float clamp_to_f16(float x) { return fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x; }

__device__ __forceinline__ uint32_t two_16(float a, float b, bool bf16) {
  if (bf16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
  const __half2 v = __floats2half2_rn(clamp_to_f16(a), clamp_to_f16(b));
  return *reinterpret_cast<const uint32_t*>(&v);
}

/// A word of codes, read once and never again: it shall not push out of L2 what the product reads next.
__device__ __forceinline__ uint32_t read_once(const uint8_t* p) { return __ldcs(reinterpret_cast<const uint32_t*>(p)); }

/// Quads j and j + 4 of a group, j < 4: of 4-bit codes the two that share a word. See load_quads for all eight.
template <class F>
__device__ __forceinline__ void load_two_quads(const uint8_t* chunk, Chunk<F> c, int row, int g, int j,
                                               uint32_t (&q)[2]) {
  using P = Packed<F>;
  constexpr uint32_t kNibbles = 0x0f0f0f0f, kPairs = 0x03030303, kBits = 0x01010101;
  if constexpr (P::low_bits == 8) {
    q[0] = read_once(chunk + c.low(row, g) + 4 * j), q[1] = read_once(chunk + c.low_second(row, g) + 4 * j);
  } else if constexpr (P::low_bits == 4) {
    const uint32_t w = read_once(chunk + c.low(row, g) + 4 * j);
    if constexpr (P::bias == kTable)
      q[0] = table_quad<F>(w), q[1] = table_quad<F>(w >> 16);
    else
      q[0] = w & kNibbles, q[1] = w >> 4 & kNibbles;
  } else {
    const uint32_t w = read_once(chunk + c.low(row, g) + 4 * (j % 2)) >> (j / 2 * 2);
    q[0] = w & kPairs, q[1] = w >> 4 & kPairs;
  }
  if constexpr (P::high_bits == 1) {
    const uint32_t w = read_once(chunk + c.high(row, g)) >> j;
    q[0] |= (w & kBits) << P::low_bits, q[1] |= (w >> 4 & kBits) << P::low_bits;
  } else if constexpr (P::high_bits == 2) {
    const uint32_t w = read_once(chunk + c.high(row, g) + 4 * (j % 2)) >> (j / 2 * 2);
    q[0] |= (w & kPairs) << P::low_bits, q[1] |= (w >> 4 & kPairs) << P::low_bits;
  }
}

/// scale * (stored - bias) + offset of the four codes of a quad.
template <class F>
__device__ __forceinline__ void weights_of(uint32_t quad, float scale, float offset, float (&w)[4]) {
  constexpr int kBias = Packed<F>::bias < 0 ? 0 : Packed<F>::bias;
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    if constexpr (Packed<F>::bias == kFloat)
      w[b] = scale * e4m3_to_f32(static_cast<uint8_t>(quad >> (8 * b)));
    else
      w[b] = scale * static_cast<float>(static_cast<int>(static_cast<int8_t>(quad >> (8 * b))) - kBias) + offset;
  }
}
/// The same in 16 bits, and as e4m3.
template <class F, bool kBf16>
__device__ __forceinline__ uint2 weights_16(uint32_t quad, float scale, float offset) {
  float w[4];
  weights_of<F>(quad, scale, offset, w);
  return make_uint2(two_16(w[0], w[1], kBf16), two_16(w[2], w[3], kBf16));
}
template <class F>
__device__ __forceinline__ uint32_t weights_e4m3(uint32_t quad, float scale, float offset) {
  float w[4];
  weights_of<F>(quad, scale, offset, w);
  return e4m3_quad(w[0], w[1], w[2], w[3]);
}

constexpr int kRowsPerThread = 4;  ///< of one tile of 16: their loads are under way together

/// Of kRowsPerThread rows of a group: quads j and j + 4, and the scales.
template <class F>
struct RowsOfGroup {
  uint32_t q[kRowsPerThread][2];
  GroupScales s[kRowsPerThread];
  __device__ __forceinline__ RowsOfGroup(const uint8_t* packed, const PackedPlace& p, int j) {
    const uint8_t* chunk = packed + p.chunk;
    const Chunk<F> c{p.groups};
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) load_two_quads<F>(chunk, c, p.row + r, p.group, j, q[r]);
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) s[r] = load_scales<F>(chunk, c, p.row + r, p.group);
  }
};

/// Four lanes take a group, lane j of them quads j and j + 4; then neighbours swap, so that a lane has 16 bytes that
/// lie together and a warp writes 512. Grid: blocks over (quads of rows, 64 groups of a row). Block: 256 threads. No
/// shared memory. Bytes: the packed ones in, 64 out per group, which bounds it.
template <class F, bool kBf16>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint8_t* __restrict__ packed, int64_t row_begin, int64_t n_rows, int64_t cols,
                      unsigned blocks_per_row, uint8_t* __restrict__ out) {
  const int n_groups = static_cast<int>(cols / kGroup), j = threadIdx.x % 4;
  const int group = static_cast<int>(blockIdx.x % blocks_per_row * (kThreads / 4) + threadIdx.x / 4);
  const int64_t row = static_cast<int64_t>(blockIdx.x / blocks_per_row) * kRowsPerThread;
  const bool inside = group < n_groups;
  const RowsOfGroup<F> rows(packed, place<F>(cols, row_begin + row, inside ? group : 0), j);
  const bool odd = j % 2 != 0;
  uint8_t* to = out + (row * cols + static_cast<int64_t>(group) * kGroup) * 2 + (odd ? 32 : 0) + j / 2 * 16;
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const GroupScales& s = rows.s[r];
    const uint2 first = weights_16<F, kBf16>(rows.q[r][0], s.scale[0], s.offset[0]);
    const uint2 second = weights_16<F, kBf16>(rows.q[r][1], s.scale[1], s.offset[1]);
    // The even lane gives its second half for the odd one's first.
    const uint2 mine = odd ? second : first, give = odd ? first : second;
    const uint32_t x = __shfl_xor_sync(0xffffffffu, give.x, 1), y = __shfl_xor_sync(0xffffffffu, give.y, 1);
    const uint4 both = odd ? make_uint4(x, y, mine.x, mine.y) : make_uint4(mine.x, mine.y, x, y);
    if (inside && row + r < n_rows) *reinterpret_cast<uint4*>(to + r * cols * 2) = both;
  }
}

/// Four rows of e4m3 and their factors, which the groups' scales tell without a look at the codes: largest_of_group().
/// Then lanes do as above, in half the bytes. Grid: a block to four rows. Shared: 16 bytes. Bytes: the packed ones in,
/// 32 out per group.
template <class F>
__global__ void __launch_bounds__(kThreads)
    unpack_e4m3_kernel(const uint8_t* __restrict__ packed, int64_t row_begin, int64_t n_rows, int64_t cols,
                       uint8_t* __restrict__ out, float* __restrict__ row_scales) {
  static_assert(kRowsPerThread == 4);  // a lane of four to a row
  __shared__ uint32_t largest[kRowsPerThread];
  const int n_groups = static_cast<int>(cols / kGroup), j = threadIdx.x % 4;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerThread;
  if (threadIdx.x < kRowsPerThread) largest[threadIdx.x] = 0;
  __syncthreads();
  uint32_t most = 0;
  for (int group = static_cast<int>(threadIdx.x) / 4; group < n_groups; group += kThreads / 4) {
    const PackedPlace p = place<F>(cols, row_begin + row, group);
    const GroupScales s = load_scales<F>(packed + p.chunk, Chunk<F>{p.groups}, p.row + j, p.group);
#pragma unroll
    for (int h = 0; h < kHalves<F>; ++h) most = max(most, largest_of_group<F>(s.scale[h], s.offset[h]));
  }
#pragma unroll
  for (int lane = 4; lane < 32; lane *= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, lane));
  if (threadIdx.x % 32 < 4) atomicMax(&largest[j], most);
  __syncthreads();
  float inverse[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const float scale = e4m3_scale(largest[r]);
    inverse[r] = 1.0f / scale;
    if (static_cast<int>(threadIdx.x) == r && row + r < n_rows) row_scales[row + r] = scale;
  }

  const bool odd = j % 2 != 0;
  for (int first = 0; first < n_groups; first += kThreads / 4) {  // the same turns for all lanes of a warp
    const int group = first + static_cast<int>(threadIdx.x) / 4;
    const bool inside = group < n_groups;
    const RowsOfGroup<F> rows(packed, place<F>(cols, row_begin + row, inside ? group : 0), j);
    uint8_t* to = out + row * cols + static_cast<int64_t>(group) * kGroup + (odd ? 16 : 0) + j / 2 * 8;
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      const float i = inverse[r];
      const GroupScales& s = rows.s[r];
      const uint32_t a = weights_e4m3<F>(rows.q[r][0], s.scale[0] * i, s.offset[0] * i);
      const uint32_t b = weights_e4m3<F>(rows.q[r][1], s.scale[1] * i, s.offset[1] * i);
      const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1);
      if (inside && row + r < n_rows)
        *reinterpret_cast<uint2*>(to + r * cols) = odd ? make_uint2(got, b) : make_uint2(a, got);
    }
  }
}

template <class F>
void dequantize(const Tensor& packed, int64_t row_begin, int64_t n_rows, const Tensor& out, cudaStream_t stream) {
  const int64_t cols = packed.cols();
  const auto per_row = static_cast<unsigned>((cols / kGroup + kThreads / 4 - 1) / (kThreads / 4));
  const auto blocks = static_cast<unsigned>((n_rows + kRowsPerThread - 1) / kRowsPerThread) * per_row;
  const auto kernel = out.dtype == DType::BF16 ? dequantize_kernel<F, true> : dequantize_kernel<F, false>;
  if (blocks > 0) {
    kernel<<<blocks, kThreads, 0, stream>>>(packed.as<uint8_t>(), row_begin, n_rows, cols, per_row, out.as<uint8_t>());
  }
}

/// Plain weights as another type; strides in numbers. Grid: blocks of 256 threads, a number each; no shared memory.
/// Bound by memory.
template <class F>
__global__ void narrow_kernel(const typename F::Block* from, int64_t stride, int64_t n_rows, int64_t cols, bool bf16,
                              uint16_t* out, int64_t out_stride) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= n_rows * cols) return;
  const int64_t row = i / cols, col = i % cols;
  const float x = F::decode(from[row * stride + col]);
  out[row * out_stride + col] = bf16 ? f32_to_bf16(x) : f32_to_f16(clamp_to_f16(x));
}

}  // namespace

void pack_rows(DType dtype, const void* blocks, int64_t row_begin, int64_t n_rows, const Tensor& packed,
               cudaStream_t stream) {
  const int64_t cols = packed.cols();
  if (n_rows <= 0) return;
  visit_gpu_format(dtype, [&]<class F>() {
    if constexpr (F::block == 1) {
      const auto width = static_cast<size_t>(cols) * sizeof(typename F::Block);
      const auto stride = static_cast<size_t>(row_major_stride(sizeof(typename F::Block), cols));
      if (packed.dtype != dtype) {
        const int64_t to = row_major_stride(2, cols) / 2;
        narrow_kernel<F><<<blocks_for(n_rows * cols), kThreads, 0, stream>>>(
            static_cast<const typename F::Block*>(blocks), cols, n_rows, cols, packed.dtype == DType::BF16,
            packed.as<uint16_t>() + row_begin * to, to);
        return check(cudaGetLastError(), "pack");
      }
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
  visit_gpu_format(packed.dtype, [&]<class F>() {
    if constexpr (F::block > 1) {
      dequantize<F>(packed, row_begin, n_rows, out, stream);
    } else {
      using Block = typename F::Block;
      constexpr int64_t kBytes = sizeof(Block);
      const int64_t stride = row_major_stride(kBytes, cols) / kBytes;
      narrow_kernel<F><<<blocks_for(n_rows * cols), kThreads, 0, stream>>>(
          packed.as<Block>() + row_begin * stride, stride, n_rows, cols, bf16, out.as<uint16_t>(), cols);
    }
  });
  check(cudaGetLastError(), "dequantize");
}

void unpack_e4m3(const Tensor& packed, int64_t row_begin, int64_t n_rows, void* out, float* scales,
                 cudaStream_t stream) {
  const int64_t cols = packed.cols();
  if (n_rows <= 0) return;
  visit_gpu_format(packed.dtype, [&]<class F>() {
    if constexpr (F::block > 1) {
      const auto blocks = static_cast<unsigned>((n_rows + kRowsPerThread - 1) / kRowsPerThread);
      unpack_e4m3_kernel<F><<<blocks, kThreads, 0, stream>>>(packed.as<uint8_t>(), row_begin, n_rows, cols,
                                                             static_cast<uint8_t*>(out), scales);
    } else {
      throw Error(ErrorKind::run, "unpack", "no e4m3 of plain weights", format_name(packed.dtype));
    }
  });
  check(cudaGetLastError(), "unpack to e4m3");
}

}  // namespace infer::cuda
