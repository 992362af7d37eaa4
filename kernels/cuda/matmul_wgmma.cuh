// The kernel of matmul_wgmma.h. Four groups of four warps multiply, a tile of 16 rows to a warp;
// one more group of warps fetches: for every slot of the ring each tile's part of a chunk, plane by plane, so that what
// lies there is a small chunk of its own, and the operand's columns. Weights are unpacked for four instructions
// while the four before them run. wgmma_plan.h says who does what.
#pragma once

#include "kernels/cuda/format_pairs.h"
#include "kernels/cuda/tile_passes.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wgmma_weights.cuh"

namespace infer::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// c += the columns of slot `number` of a row, of this warp's tile, times the operand's, whose descriptor begins with
/// `x`. On return products may still run that read the slot. No branches: with them the compiler writes to registers
/// that products still read. `between` is called when those of the slot before are done.
template <class F, int kTokens, class Between>
__device__ __forceinline__ void multiply_slot(const WgmmaBits& bits, const uint8_t* chunk, int number, uint32_t x,
                                              float (&c)[kTokens / 2], Between&& between) {
  constexpr int kSlot = wgmma_slot_groups<F>(kTokens);
  const Chunk<F> small{kSlot};
  const int lane = threadIdx.x % 32, row = lane / 4, j = lane % 4;
  uint4 block[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) block[r] = load_bytes<Chunk<F>::kBlockScale>(chunk + small.block_scale(row + 8 * r, 0));
#pragma unroll
  for (int step = 0; step < kSlot / 4; ++step) {
    const int g = 4 * step + j;
    WgmmaCodes<F> q;
    WgmmaScales<F> s;
    q.load(chunk, small, row, g);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t own = load_bytes<Chunk<F>::kGroupScale>(chunk + small.group_scale(row + 8 * r, g)).x;
      const int upper = kSlot == 8 ? step : number % 2;
      s.set_base(r, own, block[r], upper);
      s.set(r, decode_scales<F>(own, block[r], upper, j));
    }
    const auto part = [&]<int kPart>() {
      constexpr int kFirst = 4 * kPart, h = kHalves<F> == 2 ? kPart : 0;
      uint32_t a[4][4];
      const auto unpack = [&]<int i>() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          a[i][r] = q.template weights<kFirst + i, 0>(bits, r, s.scale[r][h], s.offset[r][h], s.base[r]);
          a[i][2 + r] = q.template weights<kFirst + i, 1>(bits, r, s.scale[r][h], s.offset[r][h], s.base[r]);
        }
      };
      unpack.template operator()<0>(), unpack.template operator()<1>();
      unpack.template operator()<2>(), unpack.template operator()<3>();
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        wgmma<kTokens>(c, a[i], operand_descriptor(x + (step * 8 + kFirst + i) * (kTokens * 32 / 16)));
      wgmma_commit();
      // Registers for the weights of a second part there are up to 64 tokens; beyond, other groups unpack meanwhile.
      wgmma_wait<kTokens <= 64 ? 1 : 0>();
      if (step == 0 && kPart == 0) between();
    };
    part.template operator()<0>();
    part.template operator()<1>();
  }
}

/// Results are as they are; gated ones become the next product's operand.
template <int kTokens>
struct WgmmaFinish {
  const WgmmaLaunch& p;
  __device__ __forceinline__ void join() const {}
  __device__ __forceinline__ void scale(float (&)[kTokens / 2]) const {}
  __device__ __forceinline__ void put_gated(int first_row, const float (&c)[kTokens / 2], const float4* up) const {
    cuda::put_gated<kTokens>(p, first_row, c, up,
                             [](int token, int row) { return operand_place(kTokens, token, row); });
  }
};

/// The groups of warps that multiply.
template <class F, int kTokens>
__device__ __forceinline__ void multiply_all(const WgmmaLaunch& p, const WgmmaRange& range, RingOfPasses& ring) {
  constexpr int kBytes = wgmma_tile_bytes<F>(kTokens);
  const int warp = uniform(threadIdx.x / 32), n_sets = p.plan.n_sets;
  const int set = warp >> WgmmaRange::log2_of(range.at_once), tile = warp & (range.at_once - 1);
  const WgmmaBits bits;
  const RingAddresses barriers(ring);
  int slot = set, before = -1;
  uint32_t parity = 0;
  const auto release = [&] {
    if (before >= 0 && threadIdx.x % 32 == 0) barrier_arrive(barriers.empty + before * 8);
  };
  for (int first = range.begin; first < range.end; first += range.units_at_once) {
    const WgmmaPass pass{first, min(range.units_at_once, range.end - first), range.at_once};
    const bool busy = pass.has(p, tile / 4 * 4);  // all four warps have to take part, with or without a tile
    float c[kTokens / 2];
#pragma unroll
    for (float& x : c) x = 0;
    for (int block = range.first_block + set; block < range.end_block; block += n_sets) {
      barrier_wait(barriers.weights + slot * 8, parity);
      barrier_wait(barriers.x + slot * 8, parity);
      const int at = slot * p.plan.slot_bytes;
      if (busy)
        multiply_slot<F, kTokens>(bits, wgmma_memory + at + tile * kBytes, block,
                                  operand_start(shared_address(wgmma_memory) + at + p.plan.x_offset), c, release);
      else
        release();
      before = slot;
      slot += n_sets;
      if (slot >= p.plan.n_slots) slot -= p.plan.n_slots, parity ^= 1;
    }
    wgmma_wait<0>();
    release();
    before = -1;
    finish_pass<kTokens>(p, range, pass, set, tile, c, WgmmaFinish<kTokens>{p});
  }
}

/// A CTA's part in a product.
template <class F, int kTokens>
__device__ __forceinline__ void wgmma_cta(const WgmmaLaunch& p, int cta, RingOfPasses& ring) {
  const WgmmaRange range(p, cta, kWgmmaTiles);
  if (threadIdx.x == 0) {
    ring.init(p.plan.n_slots, range.at_once);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  start_next_kernel();
  const int group = uniform(threadIdx.x / 128);
  if (group == kWgmmaGroups) {
    // Registers that this group gives up the others take: 5 x 96 = 32 + 4 x 112.
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    fetch_all<F, kTokens, true>(p, range, ring);
    if (p.plan.n_parts > 1) {
      float none[kTokens / 2];
      __syncwarp();
      join_parts<kTokens>(p, range, 0, false, none, [] {});
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    wait_for_previous_kernel();
    multiply_all<F, kTokens>(p, range, ring);
  }
}

#endif

/// Grid: row blocks x parts, parts in a cluster, one CTA an SM. Block: 4 groups of warps that multiply
/// and one that fetches. Shared: the ring, sums of the cluster, sums of up. Bytes: the packed weights once, the operand
/// once for every row block and pass, from the L2.
template <class F, int kTokens>
__global__ void __launch_bounds__(kWgmmaThreads, 1) wgmma_kernel(const __grid_constant__ WgmmaLaunch p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ RingOfPasses ring;
  wgmma_cta<F, kTokens>(p, static_cast<int>(blockIdx.x), ring);
#endif
}

/// The same for two products: CTAs of the first, then of the second.
template <class F, class G, int kTokens>
__global__ void __launch_bounds__(kWgmmaThreads, 1) wgmma_pair_kernel(const __grid_constant__ WgmmaPairLaunch p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ RingOfPasses ring;
  const int cta = static_cast<int>(blockIdx.x);
  if (cta < p.first_ctas)
    wgmma_cta<F, kTokens>(p.of[0], cta, ring);
  else
    wgmma_cta<G, kTokens>(p.of[1], cta - p.first_ctas, ring);
#endif
}

template <int kTokens>
void launch_wgmma(DType dtype, const WgmmaLaunch& p, cudaStream_t stream) {
  visit_gpu_format(dtype, [&]<class F>() {
    if constexpr (F::block > 1)
      launch_passes("matmul_wgmma", wgmma_kernel<F, kTokens>, p, p.plan.n_row_blocks * p.plan.n_parts, p.plan.n_parts,
                    p.plan.shared_bytes, stream);
  });
}

template <int kTokens>
void launch_wgmma_pair(DType first, DType second, const WgmmaPairLaunch& p, cudaStream_t stream) {
  visit_format_pair(first, second, [&]<class F, class G>() {
    const WgmmaPlan &a = p.of[0].plan, &b = p.of[1].plan;
    launch_passes("matmul_wgmma", wgmma_pair_kernel<F, G, kTokens>, p, p.first_ctas + b.n_row_blocks * b.n_parts,
                  a.n_parts, a.shared_bytes > b.shared_bytes ? a.shared_bytes : b.shared_bytes, stream);
  });
}

}  // namespace infer::cuda