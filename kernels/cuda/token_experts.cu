// See token_experts.h. With one token a layer's experts are some hundred small tiles, all known only once the router
// has spoken. Each block of token_experts_up() finds its expert by itself, one of a token's blocks writes the choice
// down, and all ask the L2 for what token_experts_down() will read.
#include "kernels/cuda/token_experts.h"

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/choose_experts.cuh"
#include "kernels/cuda/token_rows.cuh"

namespace infer::cuda {
namespace {

// ---- router --------------------------------------------------------------------------------------------------------

constexpr int kRouterWarps = 8, kRouterThreads = kRouterWarps * 32;
constexpr int kKept =
    2;  ///< fours of the router's and the norm's weights that a thread loads before the input is there

struct RouterLaunch {
  const float *x, *norm, *bias;
  const uint8_t* w;
  float *normed, *logits;
  int64_t row_bytes;
  int n_tokens, n_experts, cols;
  float eps;
};

/// Four weights of a padded row.
template <class F>
__device__ __forceinline__ float4 load_weights(const uint8_t* row, int i) {
  struct alignas(4 * sizeof(typename F::Block)) Run {
    typename F::Block w[4];
  };
  const Run run = reinterpret_cast<const Run*>(row)[i / 4];
  return make_float4(F::decode(run.w[0]), F::decode(run.w[1]), F::decode(run.w[2]), F::decode(run.w[3]));
}

/// Grid: experts times tokens. Block: 8 warps, which share the columns. One pass over x for its squares and its
/// product, and the normed row is written by all blocks of a token together. Bytes: the router once; bound by the
/// launch.
template <class F, bool kWide>
__global__ void __launch_bounds__(kRouterThreads) router_kernel(const __grid_constant__ RouterLaunch p) {
  __shared__ float squares_of_warps[kRouterWarps], dots_of_warps[kRouterWarps];
  const int token = static_cast<int>(blockIdx.x) % p.n_tokens, expert = static_cast<int>(blockIdx.x) / p.n_tokens;
  const uint8_t* weights = p.w + expert * p.row_bytes;
  const float* x = p.x + static_cast<int64_t>(token) * p.cols;
  constexpr int kStep = kRouterThreads * 4;
  const int first = static_cast<int>(threadIdx.x) * 4;
  float4 w[kKept], scale[kKept];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int i = first + k * kStep;
    w[k] = i < p.cols ? load_weights<F>(weights, i) : float4{};
    scale[k] = load_four<kWide>(p.norm, i, p.cols);
  }
  start_next_kernel();
  wait_for_previous_kernel();
  float squares = 0, dot = 0;
  const auto meet = [&](float4 v, float4 of_norm, float4 weight) {
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    dot += v.x * of_norm.x * weight.x + v.y * of_norm.y * weight.y + v.z * of_norm.z * weight.z +
           v.w * of_norm.w * weight.w;
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) meet(load_four<kWide>(x, first + k * kStep, p.cols), scale[k], w[k]);
  for (int i = first + kKept * kStep; i < p.cols; i += kStep)
    meet(load_four<kWide>(x, i, p.cols), load_four<kWide>(p.norm, i, p.cols), load_weights<F>(weights, i));
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) squares_of_warps[threadIdx.x / 32] = squares;
  dot = block_sum<kRouterWarps>(dot, dots_of_warps);
  squares = 0;
#pragma unroll
  for (const float part : squares_of_warps) squares += part;
  const float inverse = inverse_rms(squares, p.cols, p.eps);
  if (threadIdx.x == 0) {
    const float sum = dot * inverse + (p.bias ? p.bias[expert] : 0.0f);
    p.logits[static_cast<int64_t>(token) * p.n_experts + expert] = sum;
  }
  float* normed = p.normed + static_cast<int64_t>(token) * p.cols;
  for (int i = expert * kRouterThreads + static_cast<int>(threadIdx.x); i < p.cols; i += p.n_experts * kRouterThreads)
    normed[i] = x[i] * inverse * p.norm[i];
}

// ---- gate and up ---------------------------------------------------------------------------------------------------

constexpr int kUpWarps = 8, kUpThreads = kUpWarps * 32;
static_assert(kUpThreads >= kMostChosenFrom);

/// Blocks that share an SM: four keep all tiles of OLMoE's experts on the GPU at once, where registers allow it.
template <class F>
constexpr int kUpBlocks = F::id == DType::F32 || F::id == DType::Q8_0 ? 3 : 4;

struct ExpertsUp {
  const float *normed, *logits, *b_gate, *b_up;
  const uint8_t *gate, *up, *down;
  float* out;  ///< [n_tokens][n_active][rows]
  int32_t* ids;
  float* weights;
  int64_t expert_bytes, tile_bytes;
  int64_t down_bytes, down_share;  ///< of an expert; what a block asks the L2 for of it
  int n_experts, n_active, n_pairs, cols, rows;
  bool sum_to_one;
  float weight_scale;
  Activation activation;
};

/// Grid: tiles times pairs (token, place among its experts). Block: 8 warps, which share the columns of a tile of gate
/// and that of up. Shared: the activations, the choice, the warps' sums. Bytes: both tiles, and 12 KB of the L2 for x
/// and logits. Bound by memory where the experts are large, else by how soon it begins.
template <class F>
__global__ void __launch_bounds__(kUpThreads, kUpBlocks<F>) experts_up_kernel(const __grid_constant__ ExpertsUp p) {
  extern __shared__ __align__(16) uint8_t acts[];
  __shared__ TileSums<F, kUpWarps, 2> sums;
  __shared__ Choice choice;
  const int pair = static_cast<int>(blockIdx.x) % p.n_pairs, number = static_cast<int>(blockIdx.x) / p.n_pairs;
  const int token = pair / p.n_active, place = pair % p.n_active;
  const int first_row = number * kTileRows, n_rows = min(kTileRows, p.rows - first_row);
  start_next_kernel();
  wait_for_previous_kernel();
  const float* logits = p.logits + static_cast<int64_t>(token) * p.n_experts;
  const bool writes = number == 0 && place == 0;
  if (!writes) offer_expert(choice.ranks, logits, p.n_experts);
  put_activations<F, kUpThreads>(acts, p.normed + static_cast<int64_t>(token) * p.cols, 1, p.cols);
  if (writes) {
    choose_experts<kUpThreads>(choice, logits, p.n_experts, p.n_active, p.sum_to_one, p.weight_scale);
    if (static_cast<int>(threadIdx.x) < p.n_active) {
      p.ids[pair + threadIdx.x] = choice.ids[threadIdx.x];
      p.weights[pair + threadIdx.x] = choice.weights[threadIdx.x];
    }
  } else {
    __syncthreads();
    if (place_of_expert(choice.ranks, p.n_experts) == place) choice.ids[place] = static_cast<int>(threadIdx.x);
    __syncthreads();
  }
  const int expert = choice.ids[place];
  const int64_t at = expert * p.expert_bytes + number * p.tile_bytes;
  const uint8_t *gate = p.gate + at, *up = p.up + at;
  float acc[2][kLaneRows<F>] = {};
  multiply_tiles<F, kUpWarps, 2>(
      1, p.cols, n_rows, acts, [&](int, int m) { return m == 0 ? gate : up; }, [](int) { return 1.0f; }, acc);
  sums.store(acc);
  __syncthreads();
  // What comes next, while other blocks are still at it: the next kernel's blocks find no room before these end.
  const int64_t ahead = number * p.down_share;
  prefetch_l2<kUpThreads>(p.down + choice.ids[place] * p.down_bytes + ahead, min(p.down_share, p.down_bytes - ahead));
  const int row = static_cast<int>(threadIdx.x);
  if (row >= n_rows) return;
  float g = sums.total(0, row), u = sums.total(1, row);
  const int64_t of_bias = static_cast<int64_t>(expert) * p.rows + first_row + row;
  if (p.b_gate) g += p.b_gate[of_bias];
  if (p.b_up) u += p.b_up[of_bias];
  p.out[static_cast<int64_t>(pair) * p.rows + first_row + row] =
      activated(g, p.activation) * factor_of(u, p.activation);
}

// ---- down ----------------------------------------------------------------------------------------------------------

constexpr int kDownWarps = 16, kDownThreads = kDownWarps * 32;

struct ExpertsDown {
  const float *hidden, *bias;
  const uint8_t* w;
  const float *shared, *normed, *mix;  ///< [n_tokens][rows], [n_tokens][rows], [rows]; or null
  float* out;                          ///< [n_tokens][rows]
  const int32_t* ids;
  const float* weights;
  int64_t expert_bytes, tile_bytes;
  int n_tokens, n_active, cols, rows;
  bool add;
  float add_scale;
};

/// What a token's shared expert counts.
__device__ __forceinline__ float shared_factor(const ExpertsDown& p, int token, float* warps) {
  if (!p.mix) return 1;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < p.rows; i += kDownThreads)
    sum += p.normed[static_cast<int64_t>(token) * p.rows + i] * p.mix[i];
  return 1.0f / (1.0f + expf(-block_sum<kDownWarps>(sum, warps)));
}

/// Grid: tiles of the result times tokens. Block: 16 warps, which share the columns of a tile of all of the token's
/// experts, so that no number leaves the block before it is whole: sums have one order. Shared: the activations of all
/// of them, the choice, the warps' sums. Bytes: those tiles; bound as gate and up are.
template <class F>
__global__ void __launch_bounds__(kDownThreads, 2) experts_down_kernel(const __grid_constant__ ExpertsDown p) {
  extern __shared__ __align__(16) uint8_t acts[];
  __shared__ TileSums<F, kDownWarps, 1> sums;
  __shared__ float warps[kDownWarps], weights[kMostChosen];
  __shared__ int ids[kMostChosen];
  const int token = static_cast<int>(blockIdx.x) % p.n_tokens, number = static_cast<int>(blockIdx.x) / p.n_tokens;
  const int first_row = number * kTileRows, n_rows = min(kTileRows, p.rows - first_row);
  const uint8_t* tiles = p.w + number * p.tile_bytes;
  start_next_kernel();
  wait_for_previous_kernel();
  const int row = static_cast<int>(threadIdx.x);
  float* out = p.out + static_cast<int64_t>(token) * p.rows + first_row + row;
  const float before = p.add && row < n_rows ? *out : 0.0f;
  if (row < p.n_active) ids[row] = p.ids[token * p.n_active + row], weights[row] = p.weights[token * p.n_active + row];
  put_activations<F, kDownThreads>(acts, p.hidden + static_cast<int64_t>(token) * p.n_active * p.cols, p.n_active,
                                   p.cols);
  const float of_shared = p.shared ? shared_factor(p, token, warps) : 0.0f;
  __syncthreads();
  float acc[1][kLaneRows<F>] = {};
  multiply_tiles<F, kDownWarps, 1>(
      p.n_active, p.cols, n_rows, acts, [&](int part, int) { return tiles + ids[part] * p.expert_bytes; },
      [&](int part) { return weights[part]; }, acc);
  sums.store(acc);
  __syncthreads();
  if (row >= n_rows) return;
  float sum = sums.total(0, row);
  for (int part = 0; p.bias && part < p.n_active; ++part)
    sum += weights[part] * p.bias[static_cast<int64_t>(ids[part]) * p.rows + first_row + row];
  if (p.shared) sum += of_shared * p.shared[static_cast<int64_t>(token) * p.rows + first_row + row];
  *out = p.add ? fmaf(p.add_scale, sum, before) : sum;
}

/// Whether kernels take a stack [n_experts, rows, cols] with `n_parts` rows of activations a block.
bool takes_stack(const Tensor& w, int64_t n_parts) {
  const int64_t cols = w.dims[2];
  return decodable(w.dtype) && w.layout == packed_layout(w.dtype) && w.layout != kFileBlocks && cols > 0 &&
         cols < INT32_MAX / 8 && n_parts * token_act_bytes(w.dtype, static_cast<int>(cols)) <= kTokenActBytes;
}

template <class Params>
void launch_tiles(const char* what, void (*kernel)(Params), const Params& p, int64_t blocks, int threads,
                  int64_t shared_bytes, cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kTokenActBytes)),
        what);
  launch_early(what, kernel, blocks, threads, static_cast<size_t>(shared_bytes), stream, p);
}

}  // namespace

bool token_router_takes(const Tensor& w) {
  const bool plain = w.dtype == DType::F32 || w.dtype == DType::F16 || w.dtype == DType::BF16;
  return plain && w.layout == kRowMajor && w.cols() < INT32_MAX / 8;
}

bool token_experts_take(const MoeFfnArgs& a) {
  const int64_t n_experts = a.w_router.rows(), n_active = a.ids.cols();
  return n_experts <= kMostChosenFrom && n_active <= kMostChosen && a.w_gate.dtype == a.w_up.dtype &&
         takes_stack(a.w_gate, 1) && takes_stack(a.w_up, 1) && takes_stack(a.w_down, n_active);
}

void token_router(const MoeFfnArgs& a, cudaStream_t stream) {
  RouterLaunch p{};
  p.x = a.add.x.as<float>(), p.norm = a.norm.as<float>(), p.bias = a.b_router.as<float>();
  p.w = a.w_router.as<uint8_t>(), p.normed = a.normed.as<float>(), p.logits = a.router.as<float>();
  p.n_tokens = static_cast<int>(a.add.x.rows()), p.n_experts = static_cast<int>(a.w_router.rows());
  p.cols = static_cast<int>(a.w_router.cols()), p.eps = a.eps;
  if (p.n_tokens == 0) return;
  const bool known = visit_format(a.w_router.dtype, [&]<class F>() {
    if constexpr (F::block == 1) {
      p.row_bytes = row_major_stride(sizeof(typename F::Block), p.cols);
      const auto kernel = p.cols % 4 == 0 ? router_kernel<F, true> : router_kernel<F, false>;
      launch_early("router", kernel, int64_t{p.n_experts} * p.n_tokens, kRouterThreads, 0, stream, p);
    }
  });
  if (!known) throw Error(ErrorKind::bad_file, "router", "no kernel for the format", format_name(a.w_router.dtype));
}

void token_experts_up(const MoeFfnArgs& a, cudaStream_t stream) {
  ExpertsUp p{};
  p.normed = a.normed.as<float>(), p.logits = a.router.as<float>();
  p.b_gate = a.b_gate.as<float>(), p.b_up = a.b_up.as<float>();
  p.gate = a.w_gate.as<uint8_t>(), p.up = a.w_up.as<uint8_t>(), p.out = a.gate.as<float>();
  p.n_experts = static_cast<int>(a.w_router.rows()), p.n_active = static_cast<int>(a.ids.cols());
  p.n_pairs = static_cast<int>(a.ids.n_elements());
  p.rows = static_cast<int>(a.w_gate.dims[1]), p.cols = static_cast<int>(a.w_gate.dims[2]);
  p.ids = a.ids.as<int32_t>(), p.weights = a.weights.as<float>();
  p.sum_to_one = a.sum_to_one, p.weight_scale = a.weight_scale, p.activation = a.activation;
  p.expert_bytes = packed_matrix_bytes(a.w_gate.dtype, p.rows, p.cols);
  const int64_t n_tiles = ceil_div(p.rows, kTileRows), blocks = n_tiles * p.n_pairs;
  p.down = a.w_down.as<uint8_t>();
  p.down_bytes = packed_matrix_bytes(a.w_down.dtype, a.w_down.dims[1], a.w_down.dims[2]);
  p.down_share = ceil_div<int64_t>(ceil_div<int64_t>(p.down_bytes, n_tiles), 128) * 128;
  if (blocks == 0) return;
  const bool known = visit_format(a.w_gate.dtype, [&]<class F>() {
    p.tile_bytes = token_tile_bytes<F>(p.cols);
    launch_tiles("experts, up", experts_up_kernel<F>, p, blocks, kUpThreads, token_act_bytes(F::id, p.cols), stream);
  });
  if (!known) throw Error(ErrorKind::bad_file, "experts", "no kernel for the format", format_name(a.w_gate.dtype));
}

void token_experts_down(const MoeFfnArgs& a, bool direct, cudaStream_t stream) {
  ExpertsDown p{};
  p.hidden = a.gate.as<float>(), p.bias = a.b_down.as<float>();
  p.w = a.w_down.as<uint8_t>();
  if (a.w_shared_gate)
    p.shared = a.shared_down.as<float>(), p.normed = a.normed.as<float>(), p.mix = a.shared_mix.as<float>();
  p.out = direct ? a.add.x.as<float>() : a.add.branch.as<float>();
  p.ids = a.ids.as<int32_t>(), p.weights = a.weights.as<float>();
  p.n_tokens = static_cast<int>(a.ids.rows()), p.n_active = static_cast<int>(a.ids.cols());
  p.rows = static_cast<int>(a.w_down.dims[1]), p.cols = static_cast<int>(a.w_down.dims[2]);
  p.add = direct, p.add_scale = a.add.scale;
  p.expert_bytes = packed_matrix_bytes(a.w_down.dtype, p.rows, p.cols);
  const int64_t blocks = int64_t{ceil_div(p.rows, kTileRows)} * p.n_tokens;
  if (blocks == 0) return;
  const bool known = visit_format(a.w_down.dtype, [&]<class F>() {
    p.tile_bytes = token_tile_bytes<F>(p.cols);
    launch_tiles("experts, down", experts_down_kernel<F>, p, blocks, kDownThreads,
                 p.n_active * token_act_bytes(F::id, p.cols), stream);
  });
  if (!known) throw Error(ErrorKind::bad_file, "experts", "no kernel for the format", format_name(a.w_down.dtype));
}

}  // namespace infer::cuda
