// Products of tokens with their own experts. A block takes a group of pairs (token, place) of one expert, and 16 rows
// at a time of that expert's matrix, which it multiplies like matmul_mma.cuh does: weights as the left operand of
// mma.m16n8k16, eight warps each with a share of the columns. Weights go from global memory straight into registers:
// with one token there are many small products, and all of their blocks are there at once.
#include "kernels/cuda/experts.h"
#include "kernels/cuda/matmul_mma.cuh"

namespace infer::cuda {
namespace {

constexpr int kWarps = kMmaWarps, kThreads = kMmaThreads;

struct ExpertProduct {
  const uint8_t* w;
  const float* bias;  ///< [n_experts][rows] or null
  float* out;         ///< [n_pairs][rows]
};
struct ExpertLaunch {
  ExpertProduct product[2];  ///< blockIdx.z says which
  const float* x;            ///< [n_tokens][cols] or [n_pairs][cols]
  const int32_t* ids;
  ExpertGroups groups;
  int64_t expert_bytes, tile_bytes;  ///< tile: of 16 rows; plain formats: of one
  int rows, cols, n_tiles, n_chunks, chunk_bytes;
  int pairs_per_x;  ///< n_active where a token's experts share x, else 1
};

/// What a block works on.
struct Group {
  int n = 0, expert = 0;
};

/// Finds the group's pairs and their rows of x; n is 0 where there is no such group.
__device__ __forceinline__ Group find_group(const ExpertLaunch& p, int* pairs, const float** x) {
  const ExpertGroups& g = p.groups;
  const int number = blockIdx.y;
  Group group;
  int first = number;
  if (g.order) {
    first = g.first[number];
    if (first < 0) return group;
  }
  group.expert = p.ids[g.order ? g.order[first] : first];
  group.n = g.order ? min(g.group_size, g.starts[group.expert + 1] - first) : 1;
  if (threadIdx.x < group.n) {
    const int pair = g.order ? g.order[first + threadIdx.x] : first;
    pairs[threadIdx.x] = pair;
    x[threadIdx.x] = p.x + static_cast<int64_t>(pair / p.pairs_per_x) * p.cols;
  }
  __syncthreads();
  return group;
}

/// Adds up what the warps found of a tile and writes it. `acc` as mma leaves it: rows lane / 4 and + 8, tokens 2 (lane
/// % 4) and + 1.
template <int kTiles>
__device__ __forceinline__ void write_tile(const ExpertLaunch& p, const Group& group, const int* pairs, int tile,
                                           const float (&acc)[kTiles][4], float (*sums)[kTiles * 8][kMmaTokenFloats]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][t * 8 + mma_token(lane, i)][mma_row(lane, i)] = acc[t][i];
  __syncthreads();
  const ExpertProduct& product = p.product[blockIdx.z];
  for (int i = threadIdx.x; i < group.n * kTileRows; i += kThreads) {
    const int token = i / kTileRows, in_tile = i % kTileRows, row = tile * kTileRows + in_tile;
    if (row >= p.rows) continue;
    float sum = product.bias ? product.bias[static_cast<int64_t>(group.expert) * p.rows + row] : 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][token][in_tile];
    product.out[static_cast<int64_t>(pairs[token]) * p.rows + row] = sum;
  }
  __syncthreads();
}

/// Grid: blocks over tiles, groups, products. Block: 8 warps. Shared: the warps' sums, 2.5 KB for each 8 tokens.
/// Bytes: an expert's weights once for each of its groups. Bound by memory for few tokens.
template <class F, int kTiles>
__global__ void __launch_bounds__(kThreads) expert_kernel(const __grid_constant__ ExpertLaunch p) {
  __shared__ float sums[kWarps][kTiles * 8][kMmaTokenFloats];
  __shared__ int pairs[kTiles * 8];
  __shared__ const float* x[kTiles * 8];
  const Group group = find_group(p, pairs, x);
  if (group.n == 0) return;
  const uint8_t* w = p.product[blockIdx.z].w + group.expert * p.expert_bytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = lane / 4;
  MmaTokenRegisters<F, kTiles> b;
  for (int tile = blockIdx.x; tile < p.n_tiles; tile += gridDim.x) {
    float acc[1][kTiles][4] = {};
    for (int chunk = 0; chunk < p.n_chunks; ++chunk) {
      const int left = p.cols / kGroup - chunk * Packed<F>::chunk_groups;
      const int first = chunk * Packed<F>::chunk_groups + mma_group<F>(warp, 0, lane);
      if (p.n_chunks > 1 || tile == static_cast<int>(blockIdx.x))
        load_token_registers<F, kTiles, false>(
            [&](int t) {
              const int at = token + t * kMmaTokens;
              return at < group.n ? reinterpret_cast<const uint8_t*>(x[at]) : nullptr;
            },
            p.cols, first, b);
      multiply_chunk<F, kTiles, 1>(w + tile * p.tile_bytes + static_cast<int64_t>(chunk) * p.chunk_bytes,
                                   min(left, Packed<F>::chunk_groups), b, acc);
    }
    write_tile<kTiles>(p, group, pairs, tile, acc[0], sums);
  }
}

/// The same for 16-bit weights, row after row. Columns go to k indices so that a lane loads eight neighbours of a row.
template <class Type, int kTiles>
__global__ void __launch_bounds__(kThreads) expert_plain_kernel(const __grid_constant__ ExpertLaunch p) {
  __shared__ float sums[kWarps][kTiles * 8][kMmaTokenFloats];
  __shared__ int pairs[kTiles * 8];
  __shared__ const float* x[kTiles * 8];
  const Group group = find_group(p, pairs, x);
  if (group.n == 0) return;
  const uint8_t* w = p.product[blockIdx.z].w + group.expert * p.expert_bytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4;
  for (int tile = blockIdx.x; tile < p.n_tiles; tile += gridDim.x) {
    float acc[kTiles][4] = {};
#pragma unroll 2
    for (int at = warp * 32 + lane % 4 * 8; at - lane % 4 * 8 < p.cols; at += kWarps * 32) {
      uint4 a[2]{};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * kTileRows + half * 8 + r;
        if (row < p.rows && at < p.cols) a[half] = *reinterpret_cast<const uint4*>(w + row * p.tile_bytes + at * 2);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        float v[8] = {};
        if (const int token = t * 8 + r; token < group.n)
#pragma unroll
          for (int i = 0; i < 8; ++i) v[i] = at + i < p.cols ? x[token][at + i] : 0.0f;
        if constexpr (Type::id == DType::F16)
#pragma unroll
          for (float& value : v) value = fabsf(value) > 65504.0f ? copysignf(65504.0f, value) : value;
        Type::mma(acc[t], a[0].x, a[1].x, a[0].y, a[1].y, Type::pack(v[0], v[1]), Type::pack(v[2], v[3]));
        Type::mma(acc[t], a[0].z, a[1].z, a[0].w, a[1].w, Type::pack(v[4], v[5]), Type::pack(v[6], v[7]));
      }
    }
    write_tile<kTiles>(p, group, pairs, tile, acc, sums);
  }
}

/// f32 weights: a warp a row, by plain arithmetic. For small models and tests.
__global__ void __launch_bounds__(kThreads) expert_f32_kernel(const __grid_constant__ ExpertLaunch p) {
  __shared__ int pairs[16];
  __shared__ const float* x[16];
  const Group group = find_group(p, pairs, x);
  if (group.n == 0) return;
  const ExpertProduct& product = p.product[blockIdx.z];
  const uint8_t* w = product.w + group.expert * p.expert_bytes;
  const int lane = threadIdx.x % 32;
  for (int row = blockIdx.x * kWarps + threadIdx.x / 32; row < p.rows; row += gridDim.x * kWarps) {
    const float* weights = reinterpret_cast<const float*>(w + row * p.tile_bytes);
    for (int token = 0; token < group.n; ++token) {
      float sum = 0;
      for (int i = lane; i < p.cols; i += 32) sum += weights[i] * x[token][i];
      sum = warp_sum(sum);
      if (product.bias) sum += product.bias[static_cast<int64_t>(group.expert) * p.rows + row];
      if (lane == 0) product.out[static_cast<int64_t>(pairs[token]) * p.rows + row] = sum;
    }
  }
}

ExpertProduct product_of(const ExpertMatmulArgs& a) {
  return {a.w.as<uint8_t>(), a.bias.as<float>(), a.out.as<float>()};
}

/// Tiles of a block: one while blocks are few; more where that still leaves the GPU full, since then the activations
/// are loaded once for all of them.
constexpr int64_t kEnoughBlocks = 1024;
int tiles_of_block(int64_t n_tiles, int64_t others) {
  int tiles = 1;
  while (tiles < 16 && n_tiles * others / (2 * tiles) >= kEnoughBlocks) tiles *= 2;
  return tiles;
}

}  // namespace

void expert_matmul(const ExpertMatmulArgs& a, const ExpertMatmulArgs* second, const ExpertGroups& groups,
                   cudaStream_t stream) {
  const int64_t rows = a.w.dims[1], cols = a.w.dims[2];
  if (groups.n_groups == 0 || rows == 0 || cols == 0) return;
  ExpertLaunch p{};
  p.product[0] = product_of(a);
  if (second) p.product[1] = product_of(*second);
  p.x = a.x.as<float>(), p.ids = a.ids.as<int32_t>();
  p.groups = groups;
  p.rows = static_cast<int>(rows), p.cols = static_cast<int>(cols);
  p.n_tiles = static_cast<int>(ceil_div<int64_t>(rows, kTileRows));
  p.pairs_per_x = a.x.n_dims == 2 ? static_cast<int>(a.ids.cols()) : 1;
  p.expert_bytes = packed_matrix_bytes(a.w.dtype, rows, cols);
  const int64_t n_products = second ? 2 : 1;
  const dim3 grid(
      static_cast<unsigned>(ceil_div<int64_t>(p.n_tiles, tiles_of_block(p.n_tiles, groups.n_groups * n_products))),
      static_cast<unsigned>(groups.n_groups), static_cast<unsigned>(n_products));
  const bool wide = groups.group_size > 8;
  const bool known = visit_gpu_format(a.w.dtype, [&]<class F>() {
    if constexpr (F::block > 1) {
      constexpr int kChunk = Packed<F>::chunk_groups;
      const auto n_groups = static_cast<int>(cols / kGroup);
      p.tile_bytes = tile_bytes<F>(cols);
      p.n_chunks = (n_groups + kChunk - 1) / kChunk;
      p.chunk_bytes = Chunk<F>{kChunk}.bytes();
      wide ? expert_kernel<F, 2><<<grid, kThreads, 0, stream>>>(p)
           : expert_kernel<F, 1><<<grid, kThreads, 0, stream>>>(p);
    } else {
      p.tile_bytes = row_major_stride(sizeof(typename F::Block), cols);
      if constexpr (F::id == DType::F32) {
        expert_f32_kernel<<<grid, kThreads, 0, stream>>>(p);
      } else {
        using Type = std::conditional_t<F::id == DType::F16, HalfType, Bf16Type>;
        wide ? expert_plain_kernel<Type, 2><<<grid, kThreads, 0, stream>>>(p)
             : expert_plain_kernel<Type, 1><<<grid, kThreads, 0, stream>>>(p);
      }
    }
  });
  if (!known) throw Error(ErrorKind::bad_file, "expert_matmul", "no kernel for the format", format_name(a.w.dtype));
  check_launch("expert_matmul");
}

}  // namespace infer::cuda
