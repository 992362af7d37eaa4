// Primitives that touch each number once: embedding lookup, norm, activation, residual, gather, logit scale, and the
// change to 16 bits before a product on tensor cores. All are bound by memory, or by the launch for few tokens. Rows
// have any length; four numbers at a time where length and addresses allow it.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launchers.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  ///< of kernels that stride over the rest

unsigned blocks_for(int64_t n) {
  const int64_t blocks = ceil_div<int64_t>(n, kThreads);
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

bool aligned_16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// kWide numbers that lie side by side; 1 or 4.
template <int kWide>
__device__ __forceinline__ void read(const float* from, float x[kWide]) {
  if constexpr (kWide == 4) {
    const float4 y = *reinterpret_cast<const float4*>(from);
    x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
  } else {
    x[0] = *from;
  }
}
template <int kWide, class T>
__device__ __forceinline__ void write(T* to, const float x[kWide]) {
  struct alignas(kWide * sizeof(T)) Run {
    T value[kWide];
  } run;
#pragma unroll
  for (int i = 0; i < kWide; ++i) run.value[i] = narrow<T>(x[i]);
  *reinterpret_cast<Run*>(to) = run;
}

/// Sum over the block, the same for all threads and from run to run.
template <int kBlock>
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float warps[kBlock / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kBlock / 32; ++i) sum += warps[i];
  return sum;
}

constexpr int kEmbedWarps = 4;
/// Of a row, which one warp looks up: a lane each; of plain numbers all at once.
template <class F>
constexpr int kUnitGroups = F::block == 1 ? 8 : 32;

/// A lane decodes a group of 32 numbers into shared memory, then the warp writes group after group, 128 bytes at a
/// time; plain numbers go straight from lane to lane. Grid: blocks of 4 warps over (token, kUnitGroups of its row).
/// Shared: 17 KB. Bytes: the rows of the table in, 4 a number out, which bounds it.
template <class F>
__global__ void __launch_bounds__(kEmbedWarps * 32)
    embed_kernel(const typename F::Block* table, const int32_t* ids, float scale, float* out, int64_t dim,
                 int64_t vocab, int64_t n_units, int64_t row_units) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kEmbedWarps + warp;
  if (unit >= n_units) return;
  const int64_t token = unit / row_units, first = unit % row_units * kUnitGroups<F>, id = ids[token];
  if (id < 0 || id >= vocab) return;
  const typename F::Block* row = table + id * (dim / F::block);
  float* to = out + token * dim;
  if constexpr (F::block == 1) {
#pragma unroll
    for (int g = 0; g < kUnitGroups<F>; ++g) {
      const int64_t at = (first + g) * kGroup + lane;
      if (at < dim) to[at] = F::decode(row[at]) * scale;
    }
  } else {
    __shared__ float numbers[kEmbedWarps][kUnitGroups<F>][kGroup + 1];  // lanes of one column are in different banks
    const int64_t left = dim / kGroup - first;
    const int n = left < kUnitGroups<F> ? static_cast<int>(left) : kUnitGroups<F>;
    if (lane < n) {
      float x[kGroup];
      decode_row_group<F>(row, first + lane, dim, x);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) numbers[warp][lane][i] = x[i] * scale;
    }
    __syncwarp();
    for (int g = 0; g < n; ++g) to[(first + g) * kGroup + lane] = numbers[warp][g][lane];
  }
}

/// 1 / rms of the block's row.
template <int kWide>
__device__ __forceinline__ float inverse_rms_of(const float* x, int64_t cols, float eps) {
  float squares = 0;
  for (int64_t i = threadIdx.x * kWide; i < cols; i += kThreads * kWide) {
    float v[kWide];
    read<kWide>(x + i, v);
#pragma unroll
    for (int e = 0; e < kWide; ++e) squares += v[e] * v[e];
  }
  return inverse_rms(block_sum<kThreads>(squares), cols, eps);
}

constexpr int kNormThreads = 512;
constexpr int kNormKept = 2;  ///< turns of a row that stay in registers

/// Grid: one block per row. A row of up to 4096 numbers (1024 where they come one by one) is read once, of a longer one
/// the rest twice. In place is fine. Starts early, with the weights, and a product that comes next may begin to fetch
/// its own.
template <int kWide, class T>
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const float* x, const float* weight, float eps, T* out, int64_t cols) {
  constexpr int kStep = kNormThreads * kWide;
  start_next_kernel();
  const int first = threadIdx.x * kWide;
  float w[kNormKept][kWide], v[kNormKept][kWide], squares = 0;
#pragma unroll
  for (int i = 0; i < kNormKept; ++i)
    if (first + i * kStep < cols) read<kWide>(weight + first + i * kStep, w[i]);
  wait_for_previous_kernel();
  const float* row = x + blockIdx.x * cols;
  T* to = out + blockIdx.x * cols;
  const auto square = [&](const float(&numbers)[kWide]) {
#pragma unroll
    for (const float number : numbers) squares += number * number;
  };
#pragma unroll
  for (int i = 0; i < kNormKept; ++i)
    if (first + i * kStep < cols) read<kWide>(row + first + i * kStep, v[i]);
#pragma unroll
  for (int i = 0; i < kNormKept; ++i)
    if (first + i * kStep < cols) square(v[i]);
  for (int64_t at = first + kNormKept * kStep; at < cols; at += kStep) {
    float more[kWide];
    read<kWide>(row + at, more), square(more);
  }
  const float inverse = inverse_rms(block_sum<kNormThreads>(squares), cols, eps);
  const auto put = [&](int64_t at, float(&numbers)[kWide], const float(&by)[kWide]) {
#pragma unroll
    for (int e = 0; e < kWide; ++e) numbers[e] = numbers[e] * inverse * by[e];
    write<kWide>(to + at, numbers);
  };
#pragma unroll
  for (int i = 0; i < kNormKept; ++i)
    if (first + i * kStep < cols) put(first + i * kStep, v[i], w[i]);
  for (int64_t at = first + kNormKept * kStep; at < cols; at += kStep) {
    float more[kWide], by[kWide];
    read<kWide>(row + at, more), read<kWide>(weight + at, by), put(at, more, by);
  }
}

/// x += scale * branch, branch normed first if there is a weight. Grid: one block per row. Starts early, as do those
/// below that a step of few tokens has.
template <int kWide>
__global__ void __launch_bounds__(kThreads)
    add_kernel(float* x, float* branch, const float* weight, float eps, float scale, int64_t cols) {
  start_next_kernel();
  wait_for_previous_kernel();
  float *row = x + blockIdx.x * cols, *other = branch + blockIdx.x * cols;
  const float inverse = weight ? inverse_rms_of<kWide>(other, cols, eps) : 1.0f;
  for (int64_t i = threadIdx.x * kWide; i < cols; i += kThreads * kWide) {
    float sum[kWide], b[kWide], w[kWide];
    read<kWide>(row + i, sum);
    read<kWide>(other + i, b);
    if (weight) {
      read<kWide>(weight + i, w);
#pragma unroll
      for (int e = 0; e < kWide; ++e) b[e] = b[e] * inverse * w[e];
      write<kWide>(other + i, b);
    }
#pragma unroll
    for (int e = 0; e < kWide; ++e) sum[e] = multiply_then_add(scale, b[e], sum[e]);
    write<kWide>(row + i, sum);
  }
}

/// Grid: threads over runs of kWide numbers.
template <int kWide, class T>
__global__ void activate_kernel(const float* gate, const float* up, Activation activation, T* out, int64_t n) {
  start_next_kernel();
  wait_for_previous_kernel();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kWide;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWide; i < n; i += stride) {
    float g[kWide], u[kWide];
    read<kWide>(gate + i, g);
    read<kWide>(up + i, u);
#pragma unroll
    for (int e = 0; e < kWide; ++e) g[e] = activated(g[e], activation) * factor_of(u[e], activation);
    write<kWide>(out + i, g);
  }
}

template <int kWide, class T>
__global__ void convert_kernel(const float* from, T* to, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kWide;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWide; i < n; i += stride) {
    float x[kWide];
    read<kWide>(from + i, x);
    write<kWide>(to + i, x);
  }
}

/// Grid: one block per row of the result.
template <int kWide>
__global__ void gather_kernel(const float* x, const int32_t* rows, float* out, int64_t cols, int64_t n_rows) {
  start_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = rows[blockIdx.x];
  if (row < 0 || row >= n_rows) return;
  for (int64_t i = threadIdx.x * kWide; i < cols; i += kThreads * kWide) {
    float v[kWide];
    read<kWide>(x + row * cols + i, v);
    write<kWide>(out + blockIdx.x * cols + i, v);
  }
}

template <int kWide>
__global__ void scale_softcap_kernel(float* x, float scale, float softcap, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kWide;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWide; i < n; i += stride) {
    float v[kWide];
    read<kWide>(x + i, v);
#pragma unroll
    for (int e = 0; e < kWide; ++e) {
      const float y = v[e] * scale;
      v[e] = softcap > 0 ? softcap * tanhf(y / softcap) : y;
    }
    write<kWide>(x + i, v);
  }
}

/// Calls function.operator()<kWide, T>() for the type of `out`.
template <class Function>
void dispatch(const char* op, DType out, bool wide, Function&& function) {
  const bool known = visit_activation_type(out, [&]<class T>() {
    if (wide)
      function.template operator()<4, T>();
    else
      function.template operator()<1, T>();
  });
  if (!known) throw Error(ErrorKind::usage, op, "no such output type", format_name(out), "F32, F16, BF16");
}

}  // namespace

void embed(const EmbedArgs& a, cudaStream_t stream) {
  const int64_t n_tokens = a.ids.rows(), dim = a.table.cols();
  if (n_tokens == 0 || dim == 0) return;
  const bool known = visit_format(a.table.dtype, [&]<class F>() {
    const int64_t row_units = ceil_div<int64_t>(dim, kGroup * kUnitGroups<F>), n_units = n_tokens * row_units;
    embed_kernel<F><<<static_cast<unsigned>(ceil_div<int64_t>(n_units, kEmbedWarps)), kEmbedWarps * 32, 0, stream>>>(
        a.table.as<typename F::Block>(), a.ids.as<int32_t>(), a.scale, a.out.as<float>(), dim, a.table.rows(), n_units,
        row_units);
  });
  if (!known) throw Error(ErrorKind::bad_file, "embed", "no kernel for the format", format_name(a.table.dtype));
  check_launch("embed");
}

void norm(const NormArgs& a, cudaStream_t stream) {
  const int64_t cols = a.x.cols(), rows = cols == 0 ? 0 : a.x.n_elements() / cols;
  if (rows == 0) return;
  if (a.out.dtype == DType::F8_E4M3) return norm_e4m3(a, stream);
  const bool wide = cols % 4 == 0 && aligned_16(a.x.data) && aligned_16(a.weight.data) && aligned_16(a.out.data);
  dispatch("norm", a.out.dtype, wide, [&]<int kWide, class T>() {
    launch_early("norm", norm_kernel<kWide, T>, rows, kNormThreads, 0, stream, a.x.as<float>(), a.weight.as<float>(),
                 a.eps, a.out.as<T>(), cols);
  });
}

void activate(const ActivateArgs& a, cudaStream_t stream) {
  const int64_t n = a.gate.n_elements();
  if (n == 0) return;
  const bool wide = n % 4 == 0 && aligned_16(a.gate.data) && aligned_16(a.up.data) && aligned_16(a.out.data);
  dispatch("activate", a.out.dtype, wide, [&]<int kWide, class T>() {
    launch_early("activate", activate_kernel<kWide, T>, blocks_for(n / kWide), kThreads, 0, stream, a.gate.as<float>(),
                 a.up.as<float>(), a.activation, a.out.as<T>(), n);
  });
}

void add(const AddArgs& a, cudaStream_t stream) {
  const int64_t cols = a.x.cols(), rows = cols == 0 ? 0 : a.x.n_elements() / cols;
  if (rows == 0) return;
  const bool wide = cols % 4 == 0 && aligned_16(a.x.data) && aligned_16(a.branch.data) && aligned_16(a.norm.data);
  const auto kernel = wide ? add_kernel<4> : add_kernel<1>;
  launch_early("add", kernel, rows, kThreads, 0, stream, a.x.as<float>(), a.branch.as<float>(), a.norm.as<float>(),
               a.eps, a.scale, cols);
}

void gather(const Tensor& x, const Tensor& rows, const Tensor& out, cudaStream_t stream) {
  const int64_t n = rows.rows(), cols = x.cols();
  if (n == 0) return;
  const bool wide = cols % 4 == 0 && aligned_16(x.data) && aligned_16(out.data);
  const auto kernel = wide ? gather_kernel<4> : gather_kernel<1>;
  launch_early("gather", kernel, n, kThreads, 0, stream, x.as<float>(), rows.as<int32_t>(), out.as<float>(), cols,
               x.rows());
}

void scale_softcap(const Tensor& x, float scale, float softcap, cudaStream_t stream) {
  const int64_t n = x.n_elements();
  if (n == 0 || (scale == 1 && softcap <= 0)) return;
  const bool wide = n % 4 == 0 && aligned_16(x.data);
  const auto kernel = wide ? scale_softcap_kernel<4> : scale_softcap_kernel<1>;
  kernel<<<blocks_for(wide ? n / 4 : n), kThreads, 0, stream>>>(x.as<float>(), scale, softcap, n);
  check_launch("scale_softcap");
}

void convert(const Tensor& from, const Tensor& to, cudaStream_t stream) {
  const int64_t n = from.n_elements();
  if (n == 0) return;
  if (to.dtype == DType::F8_E4M3) return convert_e4m3(from, to, stream);
  const bool wide = n % 4 == 0 && aligned_16(from.data) && aligned_16(to.data);
  dispatch("convert", to.dtype, wide, [&]<int kWide, class T>() {
    convert_kernel<kWide, T><<<blocks_for(n / kWide), kThreads, 0, stream>>>(from.as<float>(), to.as<T>(), n);
  });
  check_launch("convert");
}

}  // namespace infer::cuda
