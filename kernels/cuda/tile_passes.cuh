// What kernels of few tokens share that read packed weights through a ring, sixteen tiles of 16 rows at once: who has
// which tiles and columns (wgmma_plan.h), the warps that fetch, sums of sets and of a cluster's CTAs joined, and
// results written. Sums lie as mma's and wgmma's results do: of a warp's tile, tokens 8 * (i / 4) + 2 * (lane % 4) + i
// % 2, rows lane / 4 + 8 * (i / 2 % 2).
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/matmul_wgmma.h"
#include "kernels/cuda/ring.cuh"

namespace infer::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

extern __shared__ __align__(128) uint8_t wgmma_memory[];

/// Bytes of weights that may be in flight: whatever else is asked for, activations above all, waits behind them.
inline constexpr int kWgmmaInFlight = 72 << 10;
inline constexpr int kFetchWarps = 4;  ///< the last one for activations that are streamed, the others for weights

/// Tiles that a pass has, and which of them is whose.
struct WgmmaPass {
  int first_unit, n_units;
  int at_once;  ///< tiles of a full pass

  /// Whether there is a tile `slot` (0 .. at_once - 1) in this pass: units in turn, or all gates before all ups.
  __device__ __forceinline__ bool has(const WgmmaLaunch& p, int slot) const { return unit_in_pass(p, slot) < n_units; }
  __device__ __forceinline__ int unit_in_pass(const WgmmaLaunch& p, int slot) const {
    return p.tiles_per_unit == 2 && slot >= at_once / 2 ? slot - at_once / 2 : slot;
  }
  __device__ __forceinline__ int unit(const WgmmaLaunch& p, int slot) const {
    return first_unit + unit_in_pass(p, slot);
  }
  __device__ __forceinline__ int matrix(const WgmmaLaunch& p, int slot) const {
    if (p.tiles_per_unit == 2) return slot >= at_once / 2;
    const int of = unit(p, slot);
    return of >= p.w[2].first_unit ? 2 : of >= p.w[1].first_unit ? 1 : 0;
  }
};

/// What is the same in all lanes, so that the compiler knows that it is.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

/// What a CTA has to do. Parts, sets and tiles at once are powers of two.
struct WgmmaRange {
  int begin, end, first_block, end_block;
  int part, at_once, units_at_once;
  __device__ __forceinline__ WgmmaRange(const WgmmaLaunch& p, int cta, int tiles) {
    part = cta & (p.plan.n_parts - 1);
    const int row_block = cta >> log2_of(p.plan.n_parts);
    at_once = tiles >> log2_of(p.plan.n_sets), units_at_once = p.tiles_per_unit == 2 ? at_once / 2 : at_once;
    begin = p.plan.units.first(row_block), end = p.plan.units.first(row_block + 1);
    first_block = p.plan.blocks.first(part), end_block = p.plan.blocks.first(part + 1);
  }
  static __device__ __forceinline__ int log2_of(int power) { return 31 - __clz(power); }
};

/// Where a block of columns lies in the chunks of a tile, and in a slot as a chunk of its own: a piece of a chunk, or
/// half of one.
template <class F, int kSlot>
class FetchBlock {
 public:
  __device__ __forceinline__ FetchBlock(int n_groups, int block) {
    constexpr int kChunk = Packed<F>::chunk_groups;
    const int first = block * kSlot, chunk = first / kChunk, left = n_groups - chunk * kChunk;
    g_ = first % kChunk, c_ = Chunk<F>{left < kChunk ? left : kChunk};
    chunk_ = static_cast<int64_t>(chunk) * Chunk<F>{kChunk}.bytes();
    if constexpr (kSlot == Chunk<F>::kPiece) chunk_ += g_ / kSlot * Chunk<F>::kPieceBytes;
  }
  __device__ __forceinline__ void copy(const uint8_t* tile, uint32_t to, uint32_t full, uint64_t policy) const {
    using C = Chunk<F>;
    const uint8_t* from = tile + chunk_;
    if constexpr (kSlot == C::kPiece) return bulk_copy(to, from, C::kPieceBytes, full, policy);
    const C small{kSlot};
    bulk_copy(to + small.low(0, 0), from + c_.low(0, g_), kSlot * kTileRows * C::kLow, full, policy);
    if constexpr (Packed<F>::low_bits == 8)
      bulk_copy(to + small.low_second(0, 0), from + c_.low_second(0, g_), kSlot * kTileRows * C::kLow, full, policy);
    if constexpr (Packed<F>::high_bits > 0)
      bulk_copy(to + small.high(0, 0), from + c_.high(0, g_), kSlot * kTileRows * C::kHigh, full, policy);
    if constexpr (C::kGroupScale > 0)
      bulk_copy(to + small.group_scale(0, 0), from + c_.group_scale(0, g_), kSlot * kTileRows * C::kGroupScale, full,
                policy);
    if constexpr (C::kBlockScale > 0)
      bulk_copy(to + small.block_scale(0, 0), from + c_.block_scale(0, g_), kTileRows * C::kBlockScale, full, policy);
  }

 private:
  int g_;
  Chunk<F> c_;
  int64_t chunk_;
};

/// Tiles of one matrix that lie one after the other, and follow one another in a slot.
struct WgmmaRun {
  const uint8_t* from = nullptr;
  int slot = 0, n = 0;
};

/// The tiles of a pass.
__device__ __forceinline__ void find_runs(const WgmmaLaunch& p, const WgmmaPass& pass, WgmmaRun (&runs)[3]) {
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    const MmaMatrix& w = p.w[m];
    int first = pass.first_unit, end = pass.first_unit + pass.n_units;
    if (p.tiles_per_unit == 2) {
      if (m == 2) first = end;
      runs[m].slot = m * pass.at_once / 2;
    } else {
      first = max(first, w.first_unit);
      if (m < 2) end = min(end, p.w[m + 1].first_unit);
      runs[m].slot = first - pass.first_unit;
    }
    runs[m].n = max(0, end - first);
    runs[m].from = w.data + (first - w.first_unit) * p.tile_bytes;
  }
}

/// Barriers of the ring: a slot's weights are there, its activations are (where they come through the ring), and all
/// have read both.
struct RingOfPasses {
  uint64_t weights[kWgmmaMaxSlots], x[kWgmmaMaxSlots], empty[kWgmmaMaxSlots];
  __device__ __forceinline__ void init(int n_slots, int readers) {
    for (int i = 0; i < n_slots; ++i)
      barrier_init(&weights[i], 1), barrier_init(&x[i], 1), barrier_init(&empty[i], readers);
  }
};

/// Where those barriers lie, kept: by name the machine is asked for it anew for every slot, which takes 30 cycles.
struct RingAddresses {
  uint32_t weights, x, empty;
  __device__ __forceinline__ explicit RingAddresses(RingOfPasses& ring)
      : weights(kept_in_register(shared_address(ring.weights))),
        x(weights + offsetof(RingOfPasses, x)),
        empty(weights + offsetof(RingOfPasses, empty)) {}
};

/// A warp of the group that fetches: the last one activations, the others weights. Where a tile's part of a slot is one
/// copy, one of them is enough; else several take slots in turn. One thread does it, which the compiler has to know, or
/// it puts a loop over lanes around every copy.
template <class F, int kTokens, bool kStreamsX>
__device__ __forceinline__ void fetch_all(const WgmmaLaunch& p, const WgmmaRange& range, RingOfPasses& ring) {
  constexpr int kSlot = wgmma_slot_groups<F>(kTokens), kBytes = wgmma_tile_bytes<F>(kTokens);
  constexpr int kXBytes = kSlot * kGroup * kTokens * 2;
  const int weight_warps = kStreamsX ? wgmma_weight_warps(p.plan.n_slots, p.plan.n_sets) : 1;
  const int warp = uniform(threadIdx.x / 32 % 4);
  const bool weights = warp < weight_warps;
  if (!weights && (!kStreamsX || warp < kFetchWarps - 1)) return;
  if (!weights) wait_for_previous_kernel();  // weights depend on nothing, activations do
  if (!fetches()) return;
  const uint64_t policy = weights ? evict_first_policy() : evict_normal_policy();
  int slot = 0, turn = weights ? warp : 0;
  uint32_t parity = 1;
  // The oldest slot whose weights may be on their way; before so many are, there is nothing to wait for.
  int oldest = 0, more = max(1, min(kWgmmaInFlight / p.plan.slot_bytes, p.plan.n_slots - 1));
  uint32_t oldest_parity = 0;
  for (int first = range.begin; first < range.end; first += range.units_at_once) {
    const WgmmaPass pass{first, min(range.units_at_once, range.end - first), range.at_once};
    WgmmaRun runs[3];
    find_runs(p, pass, runs);
    const int bytes = kBytes * pass.n_units * p.tiles_per_unit;
    for (int block = range.first_block; block < range.end_block; ++block) {
      // Of own blocks only, see wgmma_weight_warps(); where there is one warp all are its own.
      if (!kStreamsX || turn == 0) barrier_wait(&ring.empty[slot], parity);
      if (!kStreamsX && --more < 0) {
        barrier_wait(&ring.weights[oldest], oldest_parity);
        if (++oldest == p.plan.n_slots) oldest = 0, oldest_parity ^= 1;
      }
      if (turn == 0) {
        const uint32_t to = shared_address(wgmma_memory) + slot * p.plan.slot_bytes;
        const uint32_t barrier = shared_address(weights ? &ring.weights[slot] : &ring.x[slot]);
        barrier_expect(barrier, weights ? bytes : kXBytes);
        if (weights) {
          const FetchBlock<F, kSlot> part(p.n_groups, block);
#pragma unroll
          for (int m = 0; m < 3; ++m) {
            const uint8_t* from = runs[m].from;
            uint32_t at = to + runs[m].slot * kBytes;
#pragma unroll 1
            for (int i = runs[m].n; i > 0; --i, from += p.tile_bytes, at += kBytes)
              part.copy(from, at, barrier, policy);
          }
          turn = weight_warps;
        } else {
          bulk_copy(to + p.plan.x_offset, p.x + static_cast<int64_t>(block) * kXBytes, kXBytes, barrier, policy);
          turn = 1;
        }
      }
      --turn;
      if (++slot == p.plan.n_slots) slot = 0, parity ^= 1;
    }
  }
}

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

template <int kTokens>
__device__ __forceinline__ void add_left(float (&sum)[kTokens / 2], const float4* left) {
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const float4 more = left[i * 32 + threadIdx.x % 32];
    sum[4 * i] += more.x, sum[4 * i + 1] += more.y, sum[4 * i + 2] += more.z, sum[4 * i + 3] += more.w;
  }
}

/// A barrier among all warps that multiply.
__device__ __forceinline__ void multiplying_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(128 * kWgmmaGroups) : "memory");
}

/// Adds up what the sets of groups have found, in the first one. All that multiply are done with the ring.
template <int kTokens>
__device__ __forceinline__ void join_sets(const WgmmaLaunch& p, int at_once, int set, int tile,
                                          float (&c)[kTokens / 2]) {
  multiplying_sync();
  auto* memory = reinterpret_cast<float4*>(wgmma_memory) + tile * (kTokens / 8) * 32;
  const int of_set = at_once * (kTokens / 8) * 32;
  if (set > 0) {
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i)
      memory[(set - 1) * of_set + i * 32 + threadIdx.x % 32] =
          make_float4(c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]);
  }
  multiplying_sync();
  if (set == 0)
    for (int other = 1; other < p.plan.n_sets; ++other) add_left<kTokens>(c, memory + (other - 1) * of_set);
}

/// Adds the cluster's sums up: tile `tile` of all CTAs in the CTA whose rank is tile % n_parts, in the order of the
/// ranks. Others' sums are as they were. Nobody has anything in flight. `also` is called when all CTAs are there and
/// before any goes on: what it leaves for others they find on return.
template <int kTokens, class Also>
__device__ __forceinline__ void join_parts(const WgmmaLaunch& p, const WgmmaRange& range, int tile, bool has_sums,
                                           float (&c)[kTokens / 2], Also&& also) {
  constexpr int kTileFours = kTokens / 8 * 32;
  const int n = p.plan.n_parts, owner = tile & (n - 1), lane = threadIdx.x % 32;
  const int log2_n = WgmmaRange::log2_of(n), per_rank = range.at_once >> log2_n;
  cluster_arrive();
  cluster_wait();  // all are done with their rings
  also();
  if (has_sums && range.part != owner) {
    const int from = range.part < owner ? range.part : range.part - 1;
    uint32_t to;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(to)
                 : "r"(shared_address(wgmma_memory) + p.plan.join_offset +
                       ((from * per_rank + (tile >> log2_n)) * kTileFours + lane) * 16),
                   "r"(owner));
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i)
      asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + i * 512), "f"(c[4 * i]),
                   "f"(c[4 * i + 1]), "f"(c[4 * i + 2]), "f"(c[4 * i + 3])
                   : "memory");
  }
  cluster_arrive();
  cluster_wait();
  if (!has_sums || range.part != owner) return;
  const auto* left = reinterpret_cast<const float4*>(wgmma_memory + p.plan.join_offset) + (tile >> log2_n) * kTileFours;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const float4 own = make_float4(c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]);
    float4 sum{};
#pragma unroll 1
    for (int r = 0; r < n; ++r) {
      const float4 more =
          r == range.part ? own : left[(r < range.part ? r : r - 1) * per_rank * kTileFours + i * 32 + lane];
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    c[4 * i] = sum.x, c[4 * i + 1] = sum.y, c[4 * i + 2] = sum.z, c[4 * i + 3] = sum.w;
  }
}

/// Bias, and out.
template <int kTokens>
__device__ __forceinline__ void put_sums(const WgmmaLaunch& p, const MmaMatrix& w, int first_row,
                                         const float (&c)[kTokens / 2]) {
  const int lane = threadIdx.x % 32;
  float* out = static_cast<float*>(p.out) + w.out_column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + lane / 4 + 8 * half;
    if (row >= w.rows) continue;
    const float bias = w.bias ? w.bias[row] : 0.0f;
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = 8 * i + lane % 4 * 2 + e;
        if (token >= p.n_rows) continue;
        float* to = out + token * p.out_stride + row;
        const float v = c[4 * i + 2 * half + e] + bias;
        // One writer to a place in a launch: additions have one result, and nothing waits for what is added to.
        if (p.output == MmaOutput::add)
          asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(v) : "memory");
        else
          *to = v;
      }
    }
  }
}

/// Of a row's sums of gate and up: the activation of one times the other.
__device__ __forceinline__ float gated_value(const WgmmaLaunch& p, int row, float gate, float up) {
  gate += p.w[0].bias ? p.w[0].bias[row] : 0.0f, up += p.w[1].bias ? p.w[1].bias[row] : 0.0f;
  return (p.gelu ? activated_fast<Activation::gelu_tanh>(gate) : activated_fast<Activation::silu>(gate)) * up;
}

/// The gated values of a tile in bf16, as the next product wants them: place(token, row).
template <int kTokens, class Place>
__device__ __forceinline__ void put_gated(const WgmmaLaunch& p, int first_row, const float (&c)[kTokens / 2],
                                          const float4* up, Place&& place) {
  const int lane = threadIdx.x % 32;
  auto* out = static_cast<__nv_bfloat16*>(p.out);
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const float4 u = up[i * 32 + lane];
    const float ups[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = first_row + lane / 4 + e / 2 * 8, token = 8 * i + lane % 4 * 2 + e % 2;
      if (row >= p.w[0].rows || token >= p.n_rows) continue;
      out[place(token, row)] = __float2bfloat16_rn(gated_value(p, row, c[4 * i + e], ups[e]));
    }
  }
}

/// What follows a pass, by all warps that multiply. `finish` has join(), see join_parts(), scale(c), which is called
/// with a tile's whole sums, and put_gated(first_row, c, up).
template <int kTokens, class Finish>
__device__ __forceinline__ void finish_pass(const WgmmaLaunch& p, const WgmmaRange& range, const WgmmaPass& pass,
                                            int set, int tile, float (&c)[kTokens / 2], const Finish& finish) {
  if (p.plan.n_sets > 1) join_sets<kTokens>(p, range.at_once, set, tile, c);
  if (p.plan.n_parts > 1) join_parts<kTokens>(p, range, tile, set == 0, c, [&] { finish.join(); });
  finish.scale(c);
  // Ups go where the ring was, if it is not needed for another pass: then all have to be done with it.
  if (p.tiles_per_unit == 2 && p.plan.one_pass) multiplying_sync();
  if (set > 0) return;
  const bool mine = pass.has(p, tile) && (tile & (p.plan.n_parts - 1)) == range.part;
  const int matrix = pass.matrix(p, tile), first_row = (pass.unit(p, tile) - p.w[matrix].first_unit) * kTileRows;
  if (p.tiles_per_unit == 1) {
    if (mine) put_sums<kTokens>(p, p.w[matrix], first_row, c);
    return;
  }
  // Gates and ups of the same rows are in different groups of warps: ups come through shared memory.
  const int half = range.at_once / 2, pair = tile >= half ? tile - half : tile, barrier = 2 + pair / 4;
  auto* up = reinterpret_cast<float4*>(wgmma_memory + p.plan.gated_offset) + pair * (kTokens / 8) * 32;
  if (tile >= half) {
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i)
      up[i * 32 + threadIdx.x % 32] = make_float4(c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]);
  }
  asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory");
  if (tile < half && mine) finish.put_gated(first_row, c, up);
  asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory");
}

#endif

/// One CTA an SM, parts in a cluster, started early.
template <class Launch>
void launch_passes(const char* what, void (*kernel)(Launch), const Launch& launch, int n_ctas, int n_parts,
                   int shared_bytes, cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), what);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(n_parts);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(n_ctas);
  config.blockDim = kWgmmaThreads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes, config.numAttrs = n_parts > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, launch), what);
}

}  // namespace infer::cuda
