// Activations as operands of e4m3 (e4m3.h): from f32 as they are, their norm, and the activated gate of an ffn. A row's
// factor wants its largest number first, so a row stays in registers between the two; of rows too long for that the
// rest is computed twice.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/e4m3.h"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kKept = 4;  ///< eights of a row that a thread keeps: 16384 numbers of a row in all

struct Eight {
  float v[8];
};

__device__ __forceinline__ Eight read_eight(const float* from) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

// What rows are made of: read(row, column) gives eight of its numbers, and adds to `squares` what factor() wants to
// know of all of them. The row's numbers are the factor times those.

/// f32 [rows, cols].
struct PlainRows {
  const float* x;
  __device__ __forceinline__ Eight read(int64_t row, int64_t cols, int column, float&) const {
    return read_eight(x + row * cols + column);
  }
  __device__ __forceinline__ float factor(float, int64_t) const { return 1; }
};

/// The same, normed: what all numbers of a row share is left to its factor.
struct NormedRows {
  const float *x, *weight;
  float eps;
  __device__ __forceinline__ Eight read(int64_t row, int64_t cols, int column, float& squares) const {
    Eight e = read_eight(x + row * cols + column);
    const Eight w = read_eight(weight + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += e.v[i] * e.v[i], e.v[i] *= w.v[i];
    return e;
  }
  __device__ __forceinline__ float factor(float squares, int64_t cols) const { return inverse_rms(squares, cols, eps); }
};

/// activation(gate) * up of bf16 [rows, cols].
template <Activation kActivation>
struct GatedRows {
  const uint16_t *gate, *up;
  __device__ __forceinline__ Eight read(int64_t row, int64_t cols, int column, float&) const {
    const uint4 g = *reinterpret_cast<const uint4*>(gate + row * cols + column);
    const uint4 u = *reinterpret_cast<const uint4*>(up + row * cols + column);
    const uint32_t from[4] = {g.x, g.y, g.z, g.w}, with[4] = {u.x, u.y, u.z, u.w};
    Eight e;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      e.v[2 * i] = activated_fast<kActivation>(Bf16Type::low(from[i])) * Bf16Type::low(with[i]);
      e.v[2 * i + 1] = activated_fast<kActivation>(Bf16Type::high(from[i])) * Bf16Type::high(with[i]);
    }
    return e;
  }
  __device__ __forceinline__ float factor(float, int64_t) const { return 1; }
};

/// Grid: a block to a row. Shared: 128 bytes. Moves what the source reads (4 or 8 bytes a number) and 1 byte a number:
/// bound by memory. Starts early.
template <class Rows>
__global__ void __launch_bounds__(kMostThreads) e4m3_rows_kernel(Rows rows, uint8_t* out, float* scales, int cols) {
  __shared__ uint32_t largest_of[kMostThreads / 32];
  __shared__ float squares_of[kMostThreads / 32];
  start_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int step = static_cast<int>(blockDim.x) * 8, first = static_cast<int>(threadIdx.x) * 8;
  uint32_t largest = 0;
  float squares = 0;
  const auto look = [&](const Eight& e) {
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = max(largest, magnitude_bits(e.v[i]));
  };
  Eight kept[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    kept[i] = Eight{};
    if (first + i * step < cols) kept[i] = rows.read(row, cols, first + i * step, squares);
    look(kept[i]);
  }
  for (int column = first + kKept * step; column < cols; column += step) look(rows.read(row, cols, column, squares));

#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) largest_of[threadIdx.x / 32] = largest, squares_of[threadIdx.x / 32] = squares;
  __syncthreads();
  largest = 0, squares = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp)
    largest = max(largest, largest_of[warp]), squares += squares_of[warp];

  const float scale = e4m3_scale(largest), inverse = 1.0f / scale;
  if (threadIdx.x == 0) scales[row] = scale * rows.factor(squares, cols);
  const auto put = [&](int column, const Eight& e) {
    const float* v = e.v;
    *reinterpret_cast<uint2*>(out + row * cols + column) =
        make_uint2(e4m3_quad(v[0] * inverse, v[1] * inverse, v[2] * inverse, v[3] * inverse),
                   e4m3_quad(v[4] * inverse, v[5] * inverse, v[6] * inverse, v[7] * inverse));
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i)
    if (first + i * step < cols) put(first + i * step, kept[i]);
  for (int column = first + kKept * step; column < cols; column += step) {
    float again = 0;
    put(column, rows.read(row, cols, column, again));
  }
}

template <class Rows>
void launch(const char* what, const Rows& rows, const Tensor& out, cudaStream_t stream) {
  const int64_t m = out.rows(), cols = out.cols();
  if (m == 0) return;
  if (cols % kE4m3Step != 0) throw Error(ErrorKind::run, what, "rows are no multiple of 16", std::to_string(cols));
  const int64_t warps = ceil_div<int64_t>(cols, 8 * kKept * 32);
  const int threads = static_cast<int>(warps < kMostThreads / 32 ? warps : kMostThreads / 32) * 32;
  launch_early(what, e4m3_rows_kernel<Rows>, m, threads, 0, stream, rows, out.as<uint8_t>(), row_scales(out),
               static_cast<int>(cols));
}

}  // namespace

void convert_e4m3(const Tensor& from, const Tensor& out, cudaStream_t stream) {
  launch("convert_e4m3", PlainRows{from.as<float>()}, out, stream);
}

void norm_e4m3(const NormArgs& a, cudaStream_t stream) {
  launch("norm_e4m3", NormedRows{a.x.as<float>(), a.weight.as<float>(), a.eps}, a.out, stream);
}

void activate_bf16_e4m3(const ActivateArgs& a, cudaStream_t stream) {
  const auto *gate = a.gate.as<uint16_t>(), *up = a.up.as<uint16_t>();
  if (a.activation == Activation::silu)
    launch("activate_e4m3", GatedRows<Activation::silu>{gate, up}, a.out, stream);
  else
    launch("activate_e4m3", GatedRows<Activation::gelu_tanh>{gate, up}, a.out, stream);
}

}  // namespace infer::cuda
