// The kernel that decodes: up to kMaxDecodeRows tokens, one CTA per SM, all resident. Launched over all stages of a
// program it is the persistent kernel: one warp per CTA streams every weight of the step through the ring while sixteen
// warps walk the stages, which hand each other values that are their own flags (exchange.cuh). Launched over a single
// stage it is that stage as a kernel of its own, for graphs, for debugging and for products outside of a program.
//
// Grid: at most one CTA per SM. Block: 544 threads. Shared memory: SharedPlan, nearly all there is. Bytes: the weights
// of the stages, read once, plus activations in L2. Bound by memory; what is lost is the time at stage boundaries.
#pragma once

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_launch.h"

namespace infer::cuda {

template <int M>
__device__ inline RingPlace dot_any(const DotContext& ctx, const MatrixArg& w, RingPlace place, int slot, int tile) {
  RingPlace next = place;
  visit_format(static_cast<DType>(w.dtype), [&]<class F>() {
    const int rows = min(kTileRows, w.rows - tile * kTileRows);
    if constexpr (F::block > 1) {
      if (w.cols % (Packed<F>::chunk_groups * kGroup) != 0) {
        next = dot_tile<F, M, false>(ctx, w, place, slot, rows);
        return;
      }
    }
    next = dot_tile<F, M, true>(ctx, w, place, slot, rows);
  });
  return next;
}

/// A product stage: all units of this CTA, as many at a time as there are slots for their sums.
template <int M>
__device__ inline RingPlace product_stage(const DecodeStage& s, DecodeContext& ctx, RingPlace place) {
  const int n_ctas = gridDim.x;
  int first = static_cast<int>(blockIdx.x) - s.first_cta;
  if (first < 0) first += n_ctas;
  stage_input(s, ctx, first < s.n_units);
  while (first < s.n_units) {
    int n = 0;
    for (int unit = first; unit < s.n_units && (n + 1) * s.n_parts <= kept_tiles(M); unit += n_ctas, ++n)
      for (int part = 0; part < s.n_parts; ++part) {
        int tile = unit, matrix = part;
        if (s.n_parts == 1)
          for (; tile >= s.w[matrix].n_tiles; ++matrix) tile -= s.w[matrix].n_tiles;
        place = dot_any<M>(ctx, s.w[matrix], place, n * s.n_parts + part, tile);
      }
    consumer_sync();
    finish_units<M>(s, ctx, first, n);
    first += n * n_ctas;
    if (first < s.n_units) consumer_sync();
  }
  return place;
}

template <int M>
__global__ void __launch_bounds__(kConsumers + 32, 1) decode_kernel(const __grid_constant__ DecodeLaunch p) {
  __shared__ RingBarriers barriers;
  __shared__ DecodeContext ctx;
  __shared__ DecodeStage stages[2];
  constexpr int kStageWords = sizeof(DecodeStage) / 4;
  static_assert(sizeof(DecodeStage) % 4 == 0 && kStageWords <= kConsumers);
  const int t = threadIdx.x;
  const DecodeStage* program = p.stages ? p.stages : &p.single;
  if (t == 0) {
    for (int i = 0; i < p.shared.n_slots; ++i)
      barrier_init(&barriers.full[i], kFullArrivals), barrier_init(&barriers.empty[i], kTeamWarps);
    ctx.barriers = &barriers, ctx.act = p.shared.act, ctx.partial = p.shared.partial;
    ctx.n_slots = p.shared.n_slots, ctx.slot_bytes = p.shared.slot_bytes, ctx.act_row_bytes = p.shared.act_row_bytes;
    ctx.n_rows = p.n_rows, ctx.x_offset = p.shared.x, ctx.dim = p.dim;
    ctx.parity = p.parity, ctx.single = p.single_stage != 0, ctx.x_save = p.x_save;
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  if (t < kStageWords)
    reinterpret_cast<uint32_t*>(&stages[p.begin & 1])[t] = reinterpret_cast<const uint32_t*>(program + p.begin)[t];
  // What attention wants to know of each row, once for all layers.
  const AttentionArg* rows = p.rows;
  if (rows && t >= 64 && t < 64 + p.n_rows) {
    const int m = t - 64;
    ctx.kv_len[m] = rows->kv_len[m], ctx.position[m] = rows->positions[m], ctx.cache_slot[m] = rows->slots[m];
  }
  if (rows && t >= 128 && t < 128 + p.n_rows * kKeptPages) {
    const int m = (t - 128) / kKeptPages, page = (t - 128) % kKeptPages;
    if (page < rows->max_pages) ctx.pages[m][page] = rows->page_table[static_cast<int64_t>(m) * rows->max_pages + page];
  }
  __syncthreads();
  if (t >= kConsumers) {
    Fetcher fetcher(p.shared, barriers);
    for (int i = p.begin; i < p.end; ++i)
      if (program[i].kind == StageKind::product) fetcher.product(program[i]);
    return;
  }
  RingPlace place;
  for (int i = p.begin; i < p.end; ++i) {
    const DecodeStage& s = stages[i & 1];
    // The next stage's description is asked for now and needed later.
    uint32_t next = 0;
    const bool more = i + 1 < p.end && t < kStageWords;
    if (more) next = reinterpret_cast<const uint32_t*>(program + i + 1)[t];
    if (s.kind == StageKind::attention) {
      attention_stage(s, ctx, p.shared.act);
    } else {
      place = product_stage<M>(s, ctx, place);
    }
    if (more) reinterpret_cast<uint32_t*>(&stages[(i + 1) & 1])[t] = next;
    consumer_sync();
  }
}

template <int M>
void launch_decode_rows(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  const auto kernel = decode_kernel<M>;
  const auto bytes = static_cast<size_t>(launch.shared.total);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared.total), "decode");
  const dim3 grid(static_cast<unsigned>(n_ctas)), block(kConsumers + 32);
  if (cooperative) {
    DecodeLaunch copy = launch;
    void* args[] = {&copy};
    check(cudaLaunchCooperativeKernel(kernel, grid, block, args, bytes, stream), "decode");
  } else {
    kernel<<<grid, block, bytes, stream>>>(launch);
    check(cudaGetLastError(), "decode");
  }
}

}  // namespace infer::cuda
