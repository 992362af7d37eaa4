// The kernels of matmul_plain.h. Weights are the left operand of mma.m16n8k16, x the right one. In both kernels a lane
// has eight neighbours of a row, 16 bytes, for two instructions, so that an instruction meets the same columns in both.
#include "kernels/cuda/matmul_plain.h"

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/mma_plan.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

constexpr int kWarps = kMmaWarps, kThreads = kMmaThreads;
constexpr int kStep = 32;  ///< columns of a warp at a time: eight for each of the four lanes of a row
constexpr int kRangeSteps = kPlainRange / kStep;

struct PlainLaunch {
  const uint8_t* w;
  const float* x;
  const uint16_t* narrow;  ///< x in the weights' type, for the kernel of many rows
  const float* bias;       ///< or null
  float* out;
  int64_t row_bytes;  ///< from a row of w to the next: a multiple of 16, zeros behind the last column
  int m, n, cols;
  bool aligned;  ///< rows of x begin at multiples of 16 bytes
  bool accumulate;
};

__device__ __forceinline__ void put(const PlainLaunch& p, int row, int token, float sum) {
  float* to = p.out + static_cast<int64_t>(token) * p.n + row;
  if (p.bias) sum += p.bias[row];
  *to = p.accumulate ? *to + sum : sum;
}

/// c += 16 rows of weights times 8 of x, 32 columns: of rows lane / 4 and lane / 4 + 8, and of x's row lane / 4.
template <class Type>
__device__ __forceinline__ void multiply(float (&c)[4], const uint4& low, const uint4& high, const uint4& x) {
  Type::mma(c, low.x, high.x, low.y, high.y, x.x, x.y);
  Type::mma(c, low.z, high.z, low.w, high.w, x.z, x.w);
}

/// Eight numbers of a row of x from column `at` on, in pairs; zeros beyond the last one.
template <class Type>
__device__ __forceinline__ uint4 load_eight(const PlainLaunch& p, const float* row, int at) {
  float v[8] = {};
  if (p.aligned && at + 8 <= p.cols) {
    const float4 a = *reinterpret_cast<const float4*>(row + at), b = *reinterpret_cast<const float4*>(row + at + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = at + i < p.cols ? row[at + i] : 0.0f;
  }
  if constexpr (Type::id == DType::F16)
#pragma unroll
    for (float& value : v) value = fabsf(value) > 65504.0f ? copysignf(65504.0f, value) : value;
  return make_uint4(Type::pack(v[0], v[1]), Type::pack(v[2], v[3]), Type::pack(v[4], v[5]), Type::pack(v[6], v[7]));
}

/// Few rows: ranges to warps in turn. Grid: blocks of 16 rows of w, of 8 rows of x. Block: 8 warps. Shared: the sums of
/// all ranges, 640 bytes each. Bytes: w once for each 8 rows of x, which bounds it.
template <class Type>
__global__ void __launch_bounds__(kThreads) plain_few_kernel(const __grid_constant__ PlainLaunch p) {
  extern __shared__ float sums[];  // [range][8 rows of x][kMmaTokenFloats]
  constexpr int kRangeFloats = kMmaTokens * kMmaTokenFloats;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4;
  const int first_row = blockIdx.x * kTileRows, first_token = blockIdx.y * kMmaTokens, token = first_token + r;
  const int n_ranges = ceil_div(p.cols, kPlainRange), row = first_row + r;
  const uint8_t* w = p.w + row * p.row_bytes;
  const float* x = p.x + static_cast<int64_t>(token) * p.cols;
  for (int range = warp; range < n_ranges; range += kWarps) {
    const int n_steps = min(kRangeSteps, ceil_div(p.cols - range * kPlainRange, kStep));
    float c[4] = {};
#pragma unroll 4
    for (int step = 0; step < n_steps; ++step) {
      const int at = range * kPlainRange + step * kStep + lane % 4 * 8;
      uint4 low{}, high{};
      if (row < p.n && at < p.cols) low = *reinterpret_cast<const uint4*>(w + at * 2);
      if (row + 8 < p.n && at < p.cols) high = *reinterpret_cast<const uint4*>(w + 8 * p.row_bytes + at * 2);
      multiply<Type>(c, low, high, token < p.m ? load_eight<Type>(p, x, at) : uint4{});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[range * kRangeFloats + mma_token(lane, i) * kMmaTokenFloats + mma_row(lane, i)] = c[i];
  }
  __syncthreads();
  if (threadIdx.x >= kMmaTokens * kTileRows) return;
  const int of_token = threadIdx.x / kTileRows, of_row = threadIdx.x % kTileRows;
  if (first_row + of_row >= p.n || first_token + of_token >= p.m) return;
  float total = 0;
  for (int range = 0; range < n_ranges; ++range)
    total += sums[range * kRangeFloats + of_token * kMmaTokenFloats + of_row];
  put(p, first_row + of_row, first_token + of_token, total);
}

/// What a block of the kernel of many rows has: two by four warps, each with so many tiles of 16 rows of w and of 8
/// rows of x.
template <int kRowTiles_, int kTokenTiles_>
struct PlainShape {
  static constexpr int kRowTiles = kRowTiles_, kTokenTiles = kTokenTiles_;
  static constexpr int kRows = 2 * kRowTiles * kTileRows, kTokens = 4 * kTokenTiles * kMmaTokens;
  static constexpr int kStages = kRowTiles == 1 ? 8 : 4;
  static constexpr int kStageWords = (kRows + kTokens) * 4;  ///< of 16 bytes: w's rows, then x's, 32 columns each
  static constexpr int kSharedBytes = kStages * kStageWords * 16;
};

/// Asks for one step's columns of the block's rows; zeros for what there is not.
template <class Shape>
__device__ __forceinline__ void fetch_step(const PlainLaunch& p, int first_row, int first_token, int step, uint4* to) {
  for (int i = threadIdx.x; i < Shape::kStageWords; i += kThreads) {
    const int at = step * kStep + i % 4 * 8, line = i / 4;
    if (line < Shape::kRows) {
      const int row = first_row + line;
      const bool inside = row < p.n && at < p.cols;
      copy_async(to + i, p.w + (inside ? row * p.row_bytes + at * 2 : 0), inside);
    } else {
      const int token = first_token + line - Shape::kRows;
      const bool inside = token < p.m && at < p.cols;
      copy_async(to + i, p.narrow + (inside ? static_cast<int64_t>(token) * p.cols + at : 0), inside);
    }
  }
}

/// Many rows: ranges one after the other. Grid: blocks of rows of w, of rows of x. Block: 8 warps. Shared: a ring of 32
/// columns of the block's rows. Bytes: w once for every block of rows of x, x once for every block of rows of w, mostly
/// from the L2. Bound by memory for up to 64 rows, then by shared memory and the tensor cores.
template <class Type, class Shape>
__global__ void __launch_bounds__(kThreads) plain_many_kernel(const __grid_constant__ PlainLaunch p) {
  extern __shared__ __align__(16) uint4 ring[];
  constexpr int kRowTiles = Shape::kRowTiles, kTokenTiles = Shape::kTokenTiles, kStages = Shape::kStages;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = blockIdx.x * Shape::kRows, first_token = blockIdx.y * Shape::kTokens;
  const int warp_row = warp / 4 * kRowTiles * kTileRows, warp_token = warp % 4 * kTokenTiles * kMmaTokens;
  const int n_steps = ceil_div(p.cols, kStep);
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < n_steps) fetch_step<Shape>(p, first_row, first_token, step, ring + step * Shape::kStageWords);
    commit_async();
  }
  float total[kRowTiles][kTokenTiles][4] = {}, c[kRowTiles][kTokenTiles][4] = {};
  for (int step = 0; step < n_steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();  // this step is there, and all are done with the one before
    const int ahead = step + kStages - 1;
    if (ahead < n_steps)
      fetch_step<Shape>(p, first_row, first_token, ahead, ring + ahead % kStages * Shape::kStageWords);
    commit_async();
    const uint4* w = ring + step % kStages * Shape::kStageWords + warp_row * 4 + lane;  // lane: row lane / 4, word % 4
    const uint4* x = ring + step % kStages * Shape::kStageWords + (Shape::kRows + warp_token) * 4 + lane;
    uint4 b[kTokenTiles];
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) b[t] = x[t * kMmaTokens * 4];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const uint4 low = w[tile * kTileRows * 4], high = w[(tile * kTileRows + 8) * 4];
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) multiply<Type>(c[tile][t], low, high, b[t]);
    }
    if ((step + 1) % kRangeSteps != 0 && step + 1 < n_steps) continue;
#pragma unroll
    for (int i = 0; i < kRowTiles * kTokenTiles * 4; ++i) {
      float& sum = c[i / (kTokenTiles * 4)][i / 4 % kTokenTiles][i % 4];
      total[i / (kTokenTiles * 4)][i / 4 % kTokenTiles][i % 4] += sum;
      sum = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kRowTiles * kTokenTiles * 4; ++i) {
    const int tile = i / (kTokenTiles * 4), t = i / 4 % kTokenTiles;
    const int row = first_row + warp_row + tile * kTileRows + mma_row(lane, i % 4);
    const int token = first_token + warp_token + t * kMmaTokens + mma_token(lane, i % 4);
    if (row < p.n && token < p.m) put(p, row, token, total[tile][t][i % 4]);
  }
}

constexpr int kF32Tokens = 4;

/// f32 weights: a warp a row, by plain arithmetic. Grid: blocks of 8 rows of w, of 4 rows of x. For small models, the
/// routers of experts, and tests.
__global__ void __launch_bounds__(kThreads) plain_f32_kernel(const __grid_constant__ PlainLaunch p) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * kWarps + threadIdx.x / 32, first = blockIdx.y * kF32Tokens;
  if (row >= p.n) return;
  const auto* w = reinterpret_cast<const float*>(p.w + row * p.row_bytes);
  float sum[kF32Tokens] = {};
  for (int i = lane; i < p.cols; i += 32) {
#pragma unroll
    for (int t = 0; t < kF32Tokens; ++t)
      if (first + t < p.m) sum[t] = fmaf(w[i], p.x[static_cast<int64_t>(first + t) * p.cols + i], sum[t]);
  }
#pragma unroll
  for (int t = 0; t < kF32Tokens; ++t) {
    const float all = warp_sum(sum[t]);
    if (lane == 0 && first + t < p.m) put(p, row, first + t, all);
  }
}

dim3 grid(const PlainLaunch& p, int rows, int tokens) {
  return {static_cast<unsigned>(ceil_div(p.n, rows)), static_cast<unsigned>(ceil_div(p.m, tokens))};
}

template <class Kernel>
void launch(Kernel kernel, const PlainLaunch& p, dim3 grid, int shared_bytes, cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "matmul_plain");
  kernel<<<grid, kThreads, static_cast<size_t>(shared_bytes), stream>>>(p);
}

template <class Type>
void launch_type(PlainLaunch& p, const Tensor& narrow, cudaStream_t stream) {
  const int64_t numbers = int64_t{p.m} * p.cols;
  if (p.m <= kMmaTokens || p.cols % 8 != 0 || numbers > narrow.n_elements()) {
    const int shared = ceil_div(p.cols, kPlainRange) * kMmaTokens * kMmaTokenFloats * 4;
    return launch(plain_few_kernel<Type>, p, grid(p, kTileRows, kMmaTokens), shared, stream);
  }
  convert(Tensor(const_cast<float*>(p.x), DType::F32, {p.m, p.cols}), Tensor(narrow.data, Type::id, {p.m, p.cols}),
          stream);
  p.narrow = narrow.as<uint16_t>();
  const auto many = [&]<class Shape>() {
    launch(plain_many_kernel<Type, Shape>, p, grid(p, Shape::kRows, Shape::kTokens), Shape::kSharedBytes, stream);
  };
  p.m <= 64 ? many.template operator()<PlainShape<1, 2>>() : many.template operator()<PlainShape<4, 4>>();
}

}  // namespace

void matmul_plain(const MatmulArgs& a, bool accumulate, const Tensor& narrow, cudaStream_t stream) {
  PlainLaunch p{};
  p.w = a.w.as<uint8_t>(), p.x = a.x.as<float>(), p.bias = a.bias.as<float>(), p.out = a.out.as<float>();
  p.m = static_cast<int>(a.x.rows()), p.n = static_cast<int>(a.w.rows()), p.cols = static_cast<int>(a.w.cols());
  p.row_bytes = row_major_stride(row_bytes(a.w.dtype, 1), p.cols);
  p.aligned = p.cols % 4 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
  p.accumulate = accumulate;
  if (p.m == 0 || p.n == 0) return;
  if (a.w.layout != kRowMajor)
    throw Error(ErrorKind::run, "matmul_plain", "no CUDA kernel for this product", format_name(a.w.dtype));
  if (a.w.dtype == DType::F32) {
    plain_f32_kernel<<<grid(p, kWarps, kF32Tokens), kThreads, 0, stream>>>(p);
  } else if (a.w.dtype == DType::F16) {
    launch_type<HalfType>(p, narrow, stream);
  } else {
    launch_type<Bf16Type>(p, narrow, stream);
  }
  check_launch("matmul_plain");
}

}  // namespace infer::cuda
