// Attention of many new tokens per sequence: the flash form (arXiv:2205.14135, arXiv:2307.08691) on tensor cores, keys
// and values gathered through the page table into shared memory, the next tile on its way while one is multiplied.
//
// The rows of a tile are (token, query head) pairs of one KV head, all heads of a token side by side: so a short chunk
// fills a tile, and a tile of keys serves the whole group. Tiles that no row of the tile may see are never loaded.
//
// What a row finds does not depend on the rows beside it: keys come in tiles that begin at multiples of 64, and a tile
// of which it sees nothing changes none of its bits. attention_in_parts() cuts the positions by the sequence alone.
#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

/// The warp's rows of Q, rounded; zeros beyond the tile's last row.
template <int kHeadDim, class Type, class Shape>
__device__ __forceinline__ void load_queries(const PrefillArgs& a, const Tile& t, int kv_head, int first_row, int lane,
                                             Queries<Shape>& queries) {
  const bool whole = a.head_dim == kHeadDim;
#pragma unroll
  for (int m = 0; m < Shape::kMTiles; ++m) {
    const float* rows[2];
    bool exists[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = first_row + m * 16 + half * 8 + lane / 4, head = kv_head * a.group + at % a.group;
      exists[half] = at < t.n_tokens * a.group;
      rows[half] = a.q + (static_cast<int64_t>(t.first_token + at / a.group) * a.n_heads + head) * a.head_dim;
    }
    const auto pair = [&](int half, int dim) {
      if (!exists[half]) return 0u;
      if (whole) {
        const float2 x = *reinterpret_cast<const float2*>(rows[half] + dim);
        return Type::pack(x.x, x.y);
      }
      return Type::pack(dim < a.head_dim ? rows[half][dim] : 0.0f, dim + 1 < a.head_dim ? rows[half][dim + 1] : 0.0f);
    };
#pragma unroll
    for (int step = 0; step < Shape::kSteps; ++step) {
      const int dim = step * 16 + lane % 4 * 2;
      queries.set(m, step, make_uint4(pair(0, dim), pair(1, dim), pair(0, dim + 8), pair(1, dim + 8)));
    }
  }
}

/// Two neighbouring numbers of a row of the result, which has `left` from the first on.
__device__ __forceinline__ void write_pair(const PrefillArgs& a, int64_t at, int left, float x, float y) {
  const bool aligned = a.head_dim % 2 == 0;
  if (a.out_type == DType::F32) {
    float* to = static_cast<float*>(a.out) + at;
    if (aligned && left > 1)
      *reinterpret_cast<float2*>(to) = make_float2(x, y);
    else
      for (int i = 0; i < min(left, 2); ++i) to[i] = i == 0 ? x : y;
  } else {
    const bool half = a.out_type == DType::F16;
    uint16_t* to = static_cast<uint16_t*>(a.out) + at;
    const uint32_t low = half ? f32_to_f16_clamped(x) : f32_to_bf16(x);
    const uint32_t high = half ? f32_to_f16_clamped(y) : f32_to_bf16(y);
    if (aligned && left > 1)
      *reinterpret_cast<uint32_t*>(to) = low | high << 16;
    else
      for (int i = 0; i < min(left, 2); ++i) to[i] = static_cast<uint16_t>(i == 0 ? low : high);
  }
}

/// Leaves what the rows found of a part: sums, maximum and total.
template <class State>
__device__ __forceinline__ void leave_rows(const PrefillArgs& a, const Tile& t, int kv_head, int first_row, int lane,
                                           const State& state) {
#pragma unroll
  for (int m = 0; m < State::Shape::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = state.total[m][half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int at = first_row + m * 16 + half * 8 + lane / 4;
      if (at >= t.n_tokens * a.group) continue;
      float* to = part_row(a, blockIdx.y, t.first_token + at / a.group, kv_head * a.group + at % a.group);
#pragma unroll
      for (int n = 0; n < State::kDimTiles; ++n) {
        const int dim = n * 8 + lane % 4 * 2;
        if (dim < a.head_dim) to[dim] = state.sums[m][n][half * 2];
        if (dim + 1 < a.head_dim) to[dim + 1] = state.sums[m][n][half * 2 + 1];
      }
      if (lane % 4 == 0) to[a.head_dim] = state.highest[m][half], to[a.head_dim + 1] = total;
    }
  }
}

/// Divides by the totals, sinks included, and writes the rows.
template <class State>
__device__ __forceinline__ void write_rows(const PrefillArgs& a, const Tile& t, int kv_head, int first_row, int lane,
                                           State& state) {
#pragma unroll
  for (int m = 0; m < State::Shape::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = state.total[m][half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int at = first_row + m * 16 + half * 8 + lane / 4;
      if (at >= t.n_tokens * a.group) continue;
      const int head = kv_head * a.group + at % a.group;
      float factor = 1.0f / total;
      if (a.sinks) {
        const float sink = a.sinks[head] * kLog2e, top = fmaxf(state.highest[m][half], sink);
        const float weight = exp2_fast(state.highest[m][half] - top);
        factor = weight / (total * weight + exp2_fast(sink - top));
      }
      const int64_t row = (static_cast<int64_t>(t.first_token + at / a.group) * a.n_heads + head) * a.head_dim;
#pragma unroll
      for (int n = 0; n < State::kDimTiles; ++n) {
        const int dim = n * 8 + lane % 4 * 2;
        write_pair(a, row + dim, a.head_dim - dim, state.sums[m][n][half * 2] * factor,
                   state.sums[m][n][half * 2 + 1] * factor);
      }
    }
  }
}

/// Grid: KV heads times tiles of kRows rows, the last tiles (which see most) first, times parts. Block: 4 warps of 16
/// or 32 rows, or 8 of 16. Shared: two tiles of K and of V, and Q where registers have no room for it. Reads every
/// visible key once per tile of rows; bound by the tensor cores. kNative: both caches hold Type already, and head_dim
/// is a multiple of 8; else they are converted on the way.
template <int kHeadDim, int kMTiles, class Type, bool kNative, class Shape = PrefillShape<kHeadDim, kMTiles>>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks) attention_prefill_kernel(const PrefillArgs a) {
  extern __shared__ __align__(16) uint4 shared[];
  const int kv_head = blockIdx.x % a.n_kv_heads;
  Tile t = find_tile<Shape::kRows>(a, (gridDim.x - 1 - blockIdx.x) / a.n_kv_heads);
  if (!t.any || (a.partial && !take_part(t, blockIdx.y))) return;
  auto* tiles = reinterpret_cast<uint16_t*>(shared + Shape::kQueryWords);  // K, V, K, V
  TilePages pages;  // of the next tile: they are known before it is wanted
  const auto fetch = [&](int first_key, int buffer) {
    uint16_t* to = tiles + buffer * 2 * Shape::kTile;
    load_tile<kHeadDim, Shape, kNative>(a, t, a.k_cache, a.k_type, kv_head, first_key, pages, to);
    load_tile<kHeadDim, Shape, kNative>(a, t, a.v_cache, a.v_type, kv_head, first_key, pages, to + Shape::kTile);
    commit_async();
    pages.find(t, first_key + kTileKeys);
  };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = t.first_row + warp * 16 * kMTiles;
  const int begin = t.low / kTileKeys * kTileKeys;
  pages.find(t, begin);
  fetch(begin, 0);
  Queries<Shape> queries;
  queries.shared = shared + warp * kMTiles * Shape::kSteps * 32 + lane;  // each lane reads what it wrote itself
  load_queries<kHeadDim, Type>(a, t, kv_head, first_row, lane, queries);
  RowState<kHeadDim, kMTiles, Type> state;
#pragma unroll
  for (int i = 0; i < 2 * kMTiles; ++i) {
    const int row = min(first_row + i * 8 + lane / 4, t.n_tokens * a.group - 1);
    state.position[i / 2][i % 2] = t.first_position + row / a.group;
    state.highest[i / 2][i % 2] = -INFINITY, state.total[i / 2][i % 2] = 0;
  }
  const int warp_low = __shfl_sync(0xffffffffu, state.position[0][0], 0);
  const int warp_high = __shfl_sync(0xffffffffu, state.position[kMTiles - 1][1], 31);
  // Scores are scaled in the exponent, unless they must be final before the maximum is taken.
  const bool scale_first = a.softcap > 0 || a.scale <= 0;
  int buffer = 0;
  for (int first_key = begin; first_key < t.high; first_key += kTileKeys, buffer ^= 1) {
    wait_async<0>();
    __syncthreads();  // this tile is there, and nobody reads the other buffer any more
    if (first_key + kTileKeys < t.high) fetch(first_key + kTileKeys, buffer ^ 1);
    const int last_key = first_key + kTileKeys - 1;
    if (first_key > warp_high || (a.window > 0 && warp_low - last_key >= a.window)) continue;
    const uint16_t* keys = tiles + buffer * 2 * Shape::kTile;
    float s[kMTiles][kTileKeys / 8][4] = {};
    state.scores(queries, keys, lane, s);
    if (scale_first) state.finish_scores(s, a.scale, a.softcap);
    if (last_key > warp_low || (a.window > 0 && warp_high - first_key >= a.window)) {
      state.mask(s, first_key + lane % 4 * 2, a.window);
    }
    state.weigh(s, scale_first ? 1.0f : a.scale * kLog2e);
    state.accumulate(s, keys + Shape::kTile, lane);
  }
  if (a.partial) return leave_rows(a, t, kv_head, first_row, lane, state);
  write_rows(a, t, kv_head, first_row, lane, state);
}

constexpr int kRotateWarps = 8;

/// Grid: warps over rows of the result, [head_dim] each. Block: 8 warps. Shared: a row per warp. Reads and writes the
/// result once; bound by memory. Takes back the rotation of the values.
template <class T>
__global__ void __launch_bounds__(kRotateWarps * 32) rotate_rows_kernel(T* rows, int64_t n, int head_dim, int block) {
  extern __shared__ float all[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRotateWarps + warp;
  if (row >= n) return;
  float* x = all + warp * head_dim;
  for (int i = lane; i < head_dim; i += 32) x[i] = static_cast<float>(rows[row * head_dim + i]);
  hadamard(x, head_dim, block, lane);
  for (int i = lane; i < head_dim; i += 32) rows[row * head_dim + i] = narrow<T>(x[i]);
}

void rotate_rows(const PrefillArgs& a, int64_t n_tokens, int block, cudaStream_t stream) {
  const int64_t n = n_tokens * a.n_heads;
  const auto grid = static_cast<unsigned>(ceil_div<int64_t>(n, kRotateWarps));
  const size_t shared = static_cast<size_t>(kRotateWarps * a.head_dim) * sizeof(float);
  const auto launch = [&](auto* rows, auto kernel) {
    kernel<<<grid, kRotateWarps * 32, shared, stream>>>(rows, n, a.head_dim, block);
    check_launch("rotate_rows");
  };
  if (a.out_type == DType::F32) return launch(static_cast<float*>(a.out), rotate_rows_kernel<float>);
  if (a.out_type == DType::F16) return launch(static_cast<__half*>(a.out), rotate_rows_kernel<__half>);
  launch(static_cast<__nv_bfloat16*>(a.out), rotate_rows_kernel<__nv_bfloat16>);
}

template <int kHeadDim, int kMTiles, class Type, bool kNative>
void launch(const PrefillArgs& a, cudaStream_t stream) {
  using Shape = PrefillShape<kHeadDim, kMTiles>;
  const auto kernel = attention_prefill_kernel<kHeadDim, kMTiles, Type, kNative>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes),
        "attention_prefill");
  const int64_t n_tiles = int64_t{a.end - a.begin} * a.group / Shape::kRows + a.n_seqs;
  const dim3 grid(static_cast<unsigned>(n_tiles * a.n_kv_heads), a.partial ? static_cast<unsigned>(n_parts(a)) : 1);
  kernel<<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(a);
  check_launch("attention_prefill");
}

/// Blocks of 128 rows from which on they are enough to fill a large GPU several times.
constexpr int64_t kManyBlocks = 512;

template <class Type, bool kNative>
void launch_sized(const PrefillArgs& a, cudaStream_t stream) {
  const bool many = !a.partial && int64_t{a.end - a.begin} * a.n_heads >= kManyBlocks * 128;
  const auto either = [&]<int kHeadDim>() {
    if (many) return launch<kHeadDim, 2, Type, kNative>(a, stream);
    launch<kHeadDim, 1, Type, kNative>(a, stream);
  };
  if (a.head_dim <= 64) return either.template operator()<64>();
  if (a.head_dim <= 96) return either.template operator()<96>();
  if (a.head_dim <= 128) return either.template operator()<128>();
  if (a.head_dim <= 256) return launch<256, 1, Type, kNative>(a, stream);
  throw Error(ErrorKind::usage, "attention", "head too large", std::to_string(a.head_dim), "256");
}

PrefillArgs prefill_args(const AttentionArgs& args) {
  PrefillArgs a{};
  a.q = args.q.as<float>();
  a.k_cache = args.k_cache.as<uint8_t>(), a.v_cache = args.v_cache.as<uint8_t>();
  a.page_table = args.page_table.as<int32_t>();
  a.q_start = args.q_start.as<int32_t>(), a.kv_len = args.kv_len.as<int32_t>();
  a.sinks = args.sinks.as<float>();
  a.out = args.out.data;
  a.max_pages = args.page_table.cols();
  a.window = static_cast<int>(args.window < (1 << 30) ? args.window : 0);  // no cache is that long
  a.n_seqs = static_cast<int>(args.kv_len.rows());
  a.n_heads = static_cast<int>(args.q.dims[1]), a.n_kv_heads = static_cast<int>(args.k_cache.dims[1]);
  a.head_dim = static_cast<int>(args.q.dims[2]), a.group = a.n_heads / a.n_kv_heads;
  a.scale = args.scale, a.softcap = args.softcap;
  a.k_type = args.k_cache.dtype, a.v_type = args.v_cache.dtype, a.out_type = args.out.dtype;
  a.end = static_cast<int>(args.q.rows());
  return a;
}

/// By the types of the cache.
void launch_typed(const PrefillArgs& a, cudaStream_t stream) {
  const bool native = a.k_type == a.v_type && a.head_dim % 8 == 0;
  if (native && a.k_type == DType::F16) return launch_sized<HalfType, true>(a, stream);
  if (native && a.k_type == DType::BF16) return launch_sized<Bf16Type, true>(a, stream);
  launch_sized<HalfType, false>(a, stream);
}

/// Takes the rotation of rotated values back.
void rotate_back(const PrefillArgs& a, int64_t n_tokens, cudaStream_t stream) {
  const auto block = static_cast<int>(kv_rotation(a.v_type, a.head_dim));
  if (block > 1) rotate_rows(a, n_tokens, block, stream);
}

}  // namespace

void attention_prefill(const AttentionArgs& args, cudaStream_t stream) {
  const PrefillArgs a = prefill_args(args);
  if (a.end == 0 || a.n_seqs == 0) return;
  launch_typed(a, stream);
  rotate_back(a, a.end, stream);
}

void attention_in_parts(const AttentionArgs& args, float* partial, int64_t partial_floats, cudaStream_t stream) {
  PrefillArgs a = prefill_args(args);
  const int n_tokens = a.end;
  if (n_tokens == 0 || a.n_seqs == 0) return;
  a.partial = partial;
  const int64_t of_token = int64_t{n_parts(a)} * a.n_heads * part_row_floats(a), most = partial_floats / of_token;
  if (most < 1)
    throw Error(ErrorKind::usage, "deterministic", "no room for the parts of so long a context",
                std::to_string(a.max_pages * kPageTokens));
  for (a.begin = 0; a.begin < n_tokens; a.begin = a.end) {
    a.end = static_cast<int>(std::min<int64_t>(a.begin + most, n_tokens));
    launch_typed(a, stream);
    join_parts(a, stream);
  }
  rotate_back(a, n_tokens, stream);
}

}  // namespace infer::cuda
