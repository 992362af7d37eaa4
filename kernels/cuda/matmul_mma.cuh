// The kernel of matmul_mma.h: tiles of packed weights stream through a ring in shared memory (bulk copies on sm_90 and
// later, cp.async before) past eight warps that hold the activations of a chunk of columns in registers. A warp takes a
// part of the chunk's columns of all 16 rows; for each tile the warps' sums meet in shared memory, and between two
// tiles there is one barrier, after which the slot of the first is free again. mma_plan.h says who does what.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/matmul_mma.h"
#include "kernels/cuda/mma_weights.cuh"
#include "kernels/cuda/ring.cuh"

namespace infer::cuda {

extern __shared__ __align__(128) uint8_t mma_memory[];

/// Activations of a lane: of each step and eight tokens, eight instructions' pairs; and their sums, as the sums of two
/// bf16, where offsets of weights ask for them.
template <class F, int kTiles>
struct MmaTokenRegisters {
  uint32_t x[kMmaSteps<F>][kTiles][8][2];
  uint32_t sum[kHasSums<F> ? kSumTerms<F> : 1][kTiles];
};

/// 32 numbers of a token as the pairs of eight instructions; zeros where `inside` is false.
template <bool kBf16>
__device__ __forceinline__ void load_pairs(const uint8_t* from, bool inside, uint32_t (&to)[8][2]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (kBf16) {
      if (i % 2) continue;
      const uint4 v = inside ? reinterpret_cast<const uint4*>(from)[i / 2] : uint4{};
      to[i][0] = __byte_perm(v.x, v.y, 0x5410), to[i][1] = __byte_perm(v.x, v.y, 0x7632);
      to[i + 1][0] = __byte_perm(v.z, v.w, 0x5410), to[i + 1][1] = __byte_perm(v.z, v.w, 0x7632);
    } else {
      const float4 v = inside ? reinterpret_cast<const float4*>(from)[i] : float4{};
      to[i][0] = Bf16Type::pack(v.x, v.z), to[i][1] = Bf16Type::pack(v.y, v.w);
    }
  }
}

/// Loads and rounds what the groups first_group, first_group + 4, ... of a row of `cols` columns meet; zeros for tokens
/// and columns that there are not. row_of(tile): the row of this lane's token of the eight, or null.
template <class F, int kTiles, bool kBf16, class RowOf>
__device__ __forceinline__ void load_token_registers(const RowOf& row_of, int cols, int first_group,
                                                     MmaTokenRegisters<F, kTiles>& b) {
  constexpr int kGroupBytes = kGroup * (kBf16 ? 2 : 4);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const uint8_t* row = row_of(tile);
#pragma unroll
    for (int step = 0; step < kMmaSteps<F>; ++step) {
      const int group = first_group + 4 * step;
      load_pairs<kBf16>(row + group * kGroupBytes, row && group * kGroup < cols, b.x[step][tile]);
      if constexpr (kHasSums<F>) {
#pragma unroll
        for (int half = 0; half < kHalves<F>; ++half) {
          constexpr int kPairs = 8 / kHalves<F>;
          float sum = 0;
#pragma unroll
          for (int i = half * kPairs; i < (half + 1) * kPairs; ++i)
#pragma unroll
            for (int pair = 0; pair < 2; ++pair)
              sum += Bf16Type::low(b.x[step][tile][i][pair]) + Bf16Type::high(b.x[step][tile][i][pair]);
          b.sum[step * kHalves<F> + half][tile] = split_bf16(sum);
        }
      }
    }
  }
}

/// The same for the tokens and the columns of `chunk` that this warp has.
template <class F, int kTiles, bool kBf16>
__device__ __forceinline__ void load_tokens(const MmaLaunch& p, int first_token, int chunk,
                                            MmaTokenRegisters<F, kTiles>& b) {
  const int lane = threadIdx.x % 32, token = first_token + lane / 4, row_bytes = p.cols * (kBf16 ? 2 : 4);
  const uint8_t* from = static_cast<const uint8_t*>(p.x) + static_cast<int64_t>(token) * row_bytes;
  const auto row_of = [&](int tile) {
    return token + tile * kMmaTokens < p.n_rows ? from + tile * kMmaTokens * row_bytes : nullptr;
  };
  load_token_registers<F, kTiles, kBf16>(row_of, p.cols,
                                         chunk * Packed<F>::chunk_groups + mma_group<F>(threadIdx.x / 32, 0, lane), b);
}

/// acc += this warp's columns of a tile's chunk of `groups` groups. Columns that there are not repeat the last group,
/// and meet activations that are zero.
template <class F, int kTiles, int kChains>
__device__ __forceinline__ void multiply_chunk(const uint8_t* chunk, int groups, const MmaTokenRegisters<F, kTiles>& b,
                                               float (&acc)[kChains][kTiles][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, j = lane % 4;
  const int first = mma_group<F>(warp, 0, 0);
  if (first >= groups) return;
  const Chunk<F> c{groups};
  const bool regular = F::block > kGroup || groups % 8 == 0;
  RowScales<F> raw[2];
  if (regular) {
    raw[0].load(chunk, c, row, first, j);
    raw[1].load(chunk, c, row + 8, first, j);
  }
  uint32_t offset[2][kSumTerms<F> > 2 ? kSumTerms<F> : 2] = {};
#pragma unroll
  for (int step = 0; step < kMmaSteps<F>; ++step) {
    const int wanted = first + 4 * step + j, g = wanted < groups ? wanted : groups - 1;
    uint32_t q[2][8];
    PairScale s[2][kHalves<F>];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_quads<F>(chunk, c, row + 8 * half, g, q[half]);
      const GroupScales scales =
          regular ? raw[half].decode(first, step, j) : load_scales<F>(chunk, c, row + 8 * half, g);
#pragma unroll
      for (int i = 0; i < kHalves<F>; ++i) {
        s[half][i] = pair_scale<F>(scales, i);
        if constexpr (kHasSums<F>) offset[half][step * kHalves<F> + i] = s[half][i].offset;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int of = kHalves<F> == 2 ? i / 4 : 0;
      const uint32_t a0 = weight_pair<F, 0>(q[0][i], s[0][of]), a1 = weight_pair<F, 0>(q[1][i], s[1][of]);
      const uint32_t a2 = weight_pair<F, 1>(q[0][i], s[0][of]), a3 = weight_pair<F, 1>(q[1][i], s[1][of]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        Bf16Type::mma(acc[i % kChains][tile], a0, a1, a2, a3, b.x[step][tile][i][0], b.x[step][tile][i][1]);
    }
  }
#pragma unroll
  for (int term = 0; term < kSumTerms<F>; term += 2)
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      Bf16Type::mma(acc[0][tile], offset[0][term], offset[1][term], offset[0][term + 1], offset[1][term + 1],
                    b.sum[term][tile], term + 1 < kSumTerms<F> ? b.sum[term + 1][tile] : 0);
}

/// Of matrices whose tiles lie one after the other: the one that has this unit.
__device__ __forceinline__ int matrix_of(const MmaLaunch& p, int unit) {
  return unit >= p.w[2].first_unit ? 2 : unit >= p.w[1].first_unit ? 1 : 0;
}

/// Sums of four rows that lie side by side, for one token.
struct FourSums {
  float v[4];
  __device__ __forceinline__ void operator+=(const float4& more) {
    v[0] += more.x, v[1] += more.y, v[2] += more.z, v[3] += more.w;
  }
  __device__ __forceinline__ float4 get() const { return make_float4(v[0], v[1], v[2], v[3]); }
};

/// Bias, activation, and out. Nobody else writes these places in this launch, so atomic additions have one result; they
/// are taken because nothing then waits for what is added to.
__device__ __forceinline__ void finish_sums(const MmaLaunch& p, int unit, int row_in_tile, int token, FourSums a,
                                            FourSums up) {
  const MmaMatrix& w = p.w[p.output == MmaOutput::gated ? 0 : matrix_of(p, unit)];
  const int first = (unit - w.first_unit) * kTileRows + row_in_tile;
  if (token >= p.n_rows) return;
  const int64_t at = token * p.out_stride + w.out_column + first;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i >= w.rows) return;
    if (w.bias) a.v[i] += w.bias[first + i];
    if (p.output == MmaOutput::store) {
      static_cast<float*>(p.out)[at + i] = a.v[i];
    } else if (p.output == MmaOutput::add) {
      asm volatile("red.global.add.f32 [%0], %1;" ::"l"(static_cast<float*>(p.out) + at + i), "f"(a.v[i]) : "memory");
    } else {
      if (p.w[1].bias) up.v[i] += p.w[1].bias[first + i];
      const float gate =
          p.gelu ? activated_fast<Activation::gelu_tanh>(a.v[i]) : activated_fast<Activation::silu>(a.v[i]);
      static_cast<__nv_bfloat16*>(p.out)[at + i] = __float2bfloat16_rn(gate * up.v[i]);
    }
  }
}

/// Asks for the tile at `walk`, by the warp that calls.
__device__ __forceinline__ void fetch_tile(const MmaLaunch& p, const MmaRange& range, const MmaWalk& walk, int slot,
                                           uint64_t* full) {
  const int unit = walk.unit(range), matrix = p.tiles_per_unit == 2 ? walk.tile_of_unit(range) : matrix_of(p, unit);
  const uint8_t* from = p.w[matrix].data + (unit - p.w[matrix].first_unit) * p.tile_bytes +
                        static_cast<int64_t>(walk.chunk) * p.chunk_bytes;
  const uint32_t to = shared_address(mma_memory) + slot * p.plan.slot_bytes;
  const int bytes = walk.chunk + 1 < p.n_chunks ? p.chunk_bytes : p.last_bytes;
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x % 32 == 0) {
    barrier_expect(shared_address(&full[slot]), bytes);
    bulk_copy(to, from, bytes, shared_address(&full[slot]), evict_first_policy());
  }
#else
  for (int i = threadIdx.x % 32 * 16; i < bytes; i += 512)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&full[slot])) : "memory");
#endif
}

/// Adds up what the parts have left of this row block, as the last of them.
template <int kFloats>
__device__ __noinline__ void join_parts(const MmaLaunch& p, const MmaRange& range, int token_block, int row_block) {
  __shared__ int is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* arrived = p.arrived + token_block * p.plan.n_row_blocks + row_block;
    is_last = atomicAdd(arrived, 1) == p.plan.n_parts - 1;
    if (is_last) *arrived = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const int64_t all = static_cast<int64_t>(p.n_units) * p.tiles_per_unit * kFloats;
  const float* sums = p.partial + token_block * p.plan.n_parts * all;
  for (int i = threadIdx.x * 4; i < (range.end - range.begin) * kFloats; i += kMmaThreads * 4) {
    const int unit = range.begin + i / kFloats, at = i % kFloats;
    FourSums v{}, up{};
    for (int part = 0; part < p.plan.n_parts; ++part) {
      const float* from = sums + part * all + static_cast<int64_t>(unit) * p.tiles_per_unit * kFloats + at;
      v += __ldcg(reinterpret_cast<const float4*>(from));
      if (p.tiles_per_unit == 2) up += __ldcg(reinterpret_cast<const float4*>(from + kFloats));
    }
    const int token = token_block * (kFloats / kTileRows) + at / kTileRows;
    finish_sums(p, unit, at % kTileRows, token, v, up);
  }
}

/// By one warp: adds up what the eight have found of the tile at `walk`, and passes it on.
template <int kTiles>
__device__ __forceinline__ void add_up(const MmaLaunch& p, const MmaRange& range, const MmaWalk& walk,
                                       const float* exchange, int token_block, int part) {
  constexpr int kFloats = mma_tile_floats(kTiles), kExchange = kTiles * kMmaTokens * kMmaTokenFloats;
  float* kept = reinterpret_cast<float*>(mma_memory + p.plan.kept_offset) + walk.tile * kFloats;
  const bool begins = walk.chunk == range.first_chunk, ends = walk.chunk + 1 == range.end_chunk;
  const bool second = walk.tile_of_unit(range) == 1, waits = p.tiles_per_unit == 2 && !second;
  const int unit = walk.unit(range);
#pragma unroll 1
  for (int i = 0; i < kTiles; ++i) {
    const int at = i * 128 + threadIdx.x % 32 * 4, row = at % kTileRows, token = at / kTileRows;
    FourSums v{};
    if (!begins) v += *reinterpret_cast<const float4*>(kept + at);
#pragma unroll
    for (int w = 0; w < kMmaWarps; ++w)
      v += *reinterpret_cast<const float4*>(exchange + w * kExchange + token * kMmaTokenFloats + row);
    if (!ends || (p.plan.n_parts == 1 && waits)) {
      *reinterpret_cast<float4*>(kept + at) = v.get();
    } else if (p.plan.n_parts > 1) {
      const int64_t tile = static_cast<int64_t>(token_block * p.plan.n_parts + part) * p.n_units + unit;
      float* to = p.partial + (tile * p.tiles_per_unit + walk.tile_of_unit(range)) * kFloats;
      *reinterpret_cast<float4*>(to + at) = v.get();
    } else {
      FourSums first = v;
      if (second) first = FourSums{}, first += *reinterpret_cast<const float4*>(kept + at - kFloats);
      finish_sums(p, unit, row, token_block * kTiles * kMmaTokens + token, first, v);
    }
  }
}

#if __CUDA_ARCH__ >= 900
inline constexpr int kMmaArrivals = 1;
#else
inline constexpr int kMmaArrivals = 32;
#endif

/// Grid: row blocks x parts x token blocks, one or two CTAs an SM, all at once. Block: 8 warps. Shared: the ring, the
/// warps' sums, sums over chunks. Bytes: the packed weights once (once for every token block, from the L2 but for the
/// first), activations of a chunk once for every CTA that takes it. Bound by memory for 8 and 16 tokens, about as much
/// by the tensor cores and unpacking for 32. A step of 8B Q4_K_M with 8, 16, 32 tokens: 3.8, 5.7, 10.1 ms on an H200
/// (27, 17, 10 % of the read speed; 2026-11-25).
///
/// kChains: with one instruction's width of tokens each would wait for the one before, so there are two sums of a lane.
template <class F, int kTiles, int kChains>
__global__ void __launch_bounds__(kMmaThreads, mma_ctas_per_sm<F>(kTiles))
    mma_kernel(const __grid_constant__ MmaLaunch p) {
  constexpr int kDepth = mma_depth(kTiles), kExchange = kTiles * kMmaTokens * kMmaTokenFloats;
  __shared__ uint64_t full[kMmaMaxSlots], found[kDepth], added[kDepth];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int token_block = static_cast<int>(blockIdx.x) % p.n_token_blocks, cta = blockIdx.x / p.n_token_blocks;
  const int part = cta % p.plan.n_parts, row_block = cta / p.plan.n_parts;
  const MmaRange range(p.n_units, p.tiles_per_unit, p.n_chunks, p.plan, row_block, part);
  const int n_items = range.n_items();
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.plan.n_slots; ++i) barrier_init(&full[i], kMmaArrivals);
    for (int i = 0; i < kDepth; ++i) barrier_init(&found[i], kMmaWarps), barrier_init(&added[i], 1);
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();
  MmaWalk walk(range), ahead(range);
  for (int i = 0; i < p.plan.n_slots && i < n_items; ++i, ahead.advance(range))
    if (warp == 0) fetch_tile(p, range, ahead, i, full);
  start_next_kernel();
  wait_for_previous_kernel();  // weights depend on nothing, activations do

  MmaTokenRegisters<F, kTiles> b;
  int slot = 0, place = 0, loaded = -1;
  uint32_t slot_phase = 0, place_phase = 0;
  for (int item = 0; item < n_items; ++item) {
    if (walk.chunk != loaded) {
      loaded = walk.chunk;
      if (p.x_bf16)
        load_tokens<F, kTiles, true>(p, token_block * kTiles * kMmaTokens, loaded, b);
      else
        load_tokens<F, kTiles, false>(p, token_block * kTiles * kMmaTokens, loaded, b);
    }
    barrier_wait(&full[slot], slot_phase);
    const int left = p.cols / kGroup - walk.chunk * Packed<F>::chunk_groups;
    float acc[kChains][kTiles][4] = {};
    multiply_chunk<F, kTiles, kChains>(mma_memory + slot * p.plan.slot_bytes,
                                       left < Packed<F>::chunk_groups ? left : Packed<F>::chunk_groups, b, acc);
    float* exchange = reinterpret_cast<float*>(mma_memory + p.plan.exchange_offset) + place * kMmaWarps * kExchange;
    barrier_wait(&added[place], place_phase ^ 1);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float v = acc[0][tile][i];
        if constexpr (kChains == 2) v += acc[1][tile][i];
        exchange[warp * kExchange + (tile * kMmaTokens + mma_token(lane, i)) * kMmaTokenFloats + mma_row(lane, i)] = v;
      }
    __syncwarp();
    if (lane == 0) barrier_arrive(&found[place]);
    const bool more = item + p.plan.n_slots < n_items;
    if (warp == (walk.tile >> range.shift) % kMmaWarps) {  // the same warp for all chunks of a unit
      barrier_wait(&found[place], place_phase);            // all sums are there, and nobody reads the slot any more
      if (more) fetch_tile(p, range, ahead, slot, full);
      add_up<kTiles>(p, range, walk, exchange, token_block, part);
      __syncwarp();
      if (lane == 0) barrier_arrive(&added[place]);
    }
    if (more) ahead.advance(range);
    walk.advance(range);
    if (++slot == p.plan.n_slots) slot = 0, slot_phase ^= 1;
    if (++place == kDepth) place = 0, place_phase ^= 1;
  }
  if (p.plan.n_parts > 1) join_parts<mma_tile_floats(kTiles)>(p, range, token_block, row_block);
}

template <class F, int kTiles, int kChains>
void launch_mma_format(const MmaLaunch& p, cudaStream_t stream) {
  const auto kernel = mma_kernel<F, kTiles, kChains>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, p.plan.shared_bytes), "matmul_mma");
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(p.plan.n_row_blocks * p.plan.n_parts * p.n_token_blocks);
  config.blockDim = kMmaThreads;
  config.dynamicSmemBytes = static_cast<size_t>(p.plan.shared_bytes);
  config.stream = stream;
  config.attrs = &early, config.numAttrs = kMmaStartsEarly ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, p), "matmul_mma");
}

template <int kTiles, int kChains = kTiles == 1 ? 2 : 1>
void launch_mma(DType dtype, const MmaLaunch& p, cudaStream_t stream) {
  visit_gpu_format(dtype, [&]<class F>() {
    if constexpr (F::block > 1) launch_mma_format<F, kTiles, kChains>(p, stream);
  });
}

}  // namespace infer::cuda
