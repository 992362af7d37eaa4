// The kernel that decodes: up to kMaxDecodeRows tokens, one CTA per SM, all resident. Launched over all stages of a
// program it is the persistent kernel: one warp per CTA streams every weight of the step through the ring while sixteen
// warps walk the stages, which hand each other values that are their own flags (exchange.cuh). Launched over a single
// stage it is that stage as a kernel of its own, for graphs, for debugging and for products outside of a program.
//
// Grid: at most one CTA per SM. Block: 544 threads. Shared memory: SharedPlan, nearly all there is. Bytes: the weights
// of the stages, read once, plus activations in L2. Bound by memory; what is lost is the time at stage boundaries. One
// row of 8B on an H200 (H100, of 2026-11-26), 2026-11-28: BF16 90 % (89 %), Q8_0 84 % (89 %), Q4_K_M 69 % (75 %) of the
// read speed; of OLMoE's active experts (2026-11-27) BF16 61 %, Q4_K_M 30 %.
#pragma once

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_finish.cuh"
#include "kernels/cuda/decode_launch.h"

namespace infer::cuda {

/// Calls f.operator()<i>() for a number in [kBegin, kEnd).
template <int kBegin, int kEnd, class Function>
__device__ __forceinline__ void visit_number(int i, const Function& f) {
  if constexpr (kEnd - kBegin == 1) {
    f.template operator()<kBegin>();
  } else {
    constexpr int kMiddle = (kBegin + kEnd) / 2;
    i < kMiddle ? visit_number<kBegin, kMiddle>(i, f) : visit_number<kMiddle, kEnd>(i, f);
  }
}

/// A run, whichever format it is of.
template <int M>
__device__ __forceinline__ RunEnd dot_any(uint32_t walk, const TileRun& run) {
  RunEnd end{};
  visit_number<0, kDotKernels>(run.kernel, [&]<int kKernel>() {
    using F = DotFormat<kKernel>;
    constexpr bool kWhole = dot_kernel_is_whole(kKernel);
    if constexpr (F::block > 1 && kWhole && M == kMaxDecodeRows) {
      end = run.scales == 1 ? dot_tiles<F, M, kWhole, 1>(walk, run.n_tiles, run.matrix, run.kept)
                            : dot_tiles<F, M, kWhole, 2>(walk, run.n_tiles, run.matrix, run.kept);
    } else if constexpr (F::block > 1 || kWhole) {
      end = dot_tiles<F, M, kWhole>(walk, run.n_tiles, run.matrix, run.kept);
    }
  });
  __syncwarp();
  return end;
}

/// A product stage: all units of this CTA, as many at a time as there is room for their sums. Where this warp's walk
/// lies is asked for anew after a call, and not more often: each time it takes 70 cycles until something of it is
/// there.
template <int M, bool kExperts>
__device__ __forceinline__ void product_stage(WarpWalk& at_begin) {
  const DecodeStage& s = decode_stages()[at_begin.which];
  if (threadIdx.x % 32 == 0) {  // before, not while the input is waited for: that cost 2 %
    if (!at_begin.found) begin_product<M>(at_begin.which);
    at_begin.found = false;
  }
  __syncwarp();
  uint32_t walk = stage_input<M, kExperts>(s, shared_address(&at_begin));
  wait_for_copies();  // of the description two stages ahead, which all see after the next barrier
  while (true) {
    const TileRun run = walk_at(walk).run;
    if (run.n_tiles == 0) return consumer_sync();
    const RunEnd end = dot_any<M>(walk, run);
    if (end.after != AfterRun::run) {
      finish_units<M, kExperts>(end.walk, end.after);
      if (end.after == AfterRun::finish) return;
      consumer_sync();
      if (threadIdx.x % 32 == 0) this_walk().tiles.first = this_walk().tiles.unit, this_walk().tiles.kept = 0;
    }
    __syncwarp();  // all have read what comes after the last one
    if (threadIdx.x % 32 == 0) find_run<M>(current_stage(), this_walk());
    __syncwarp();
    walk = shared_address(&this_walk());
  }
}

/// A stage's description into shared memory by the threads 0 .. kThreads - 1, on its way when this returns; at once
/// where it is the kernel's parameter.
template <int kThreads>
__device__ __forceinline__ void copy_stage(DecodeStage& to, const DecodeLaunch& p, int i, int t) {
  constexpr int kPieces = sizeof(DecodeStage) / 16;
  static_assert(sizeof(DecodeStage) % 16 == 0);
  uint4* out = reinterpret_cast<uint4*>(&to);
#pragma unroll 1
  for (int k = t; k < kPieces; k += kThreads) {
    if (p.stages) {
      copy_async16(out + k, reinterpret_cast<const uint4*>(p.stages + i) + k);
    } else {
      out[k] = reinterpret_cast<const uint4*>(&p.single)[k];
    }
  }
}

/// Weights of a token's experts, as soon as it is known which. `choices`: how many have been waited for.
template <int M>
__device__ __forceinline__ void fetch_experts(Fetcher& fetcher, const DecodeStage& s, uint32_t& choices) {
  const bool up = s.output == StageOutput::hidden;
  ChosenExperts& chosen = chosen_experts();
  if (up || decode_context().single) barrier_wait(&chosen.made, choices++ & 1);
  if (up) {
    fetcher.template experts_up<plain_rows(M)>(s, chosen.ids);
  } else {
    fetcher.template experts_down<plain_rows(M)>(s, chosen.ids);
  }
}

/// What the fetching warp does: all stages that stream, one after the other. Descriptions come one stage ahead.
template <int M, bool kExperts>
__device__ __forceinline__ void fetch_all(const DecodeLaunch& p) {
  if (!fetches()) return;
  DecodeStage(&stages)[2] = fixed_shared().fetch_stages;
  const int lane = kFetchLanes == 1 ? 0 : threadIdx.x % 32;
  Fetcher fetcher(p.shared, decode_barriers());
  const DecodeStage& first = p.stages ? p.stages[p.begin] : p.single;
  int i = is_streamed(first) ? p.begin : first.next_streamed, which = 0;
  uint32_t choices = 0;
  if (i < p.end) copy_stage<kFetchLanes>(stages[0], p, i, lane);
  while (i < p.end) {
    wait_for_copies();
    if (kFetchLanes > 1) __syncwarp();
    const DecodeStage& s = stages[which];
    const int next = s.next_streamed;
    if (next < p.end) copy_stage<kFetchLanes>(stages[which ^ 1], p, next, lane);
    if (s.kind == StageKind::attention) {
      fetch_cache(fetcher, s);
    } else if (kExperts && s.n_active > 0) {
      fetch_experts<M>(fetcher, s, choices);
    } else {
      fetcher.template product<plain_rows(M)>(s);
    }
    which ^= 1, i = next;
  }
}
/// kExperts: with what few models have, so that others need not ask for it all the time: experts, and norms of q and k
/// that span all heads.
template <int M, bool kExperts>
__global__ void __launch_bounds__(kConsumers + 32, 1) decode_kernel(const __grid_constant__ DecodeLaunch p) {
  DecodeContext& ctx = decode_context();
  const int t = threadIdx.x;
  if (t == 0) {
    if (decode_fixed() != decode_shared) __trap();
    for (int i = 0; i < p.shared.n_slots; ++i)
      barrier_init(&decode_barriers().full[i], kFullArrivals), barrier_init(&decode_barriers().empty[i], team_warps(M));
    ctx.act = p.shared.act, ctx.sums_end = p.shared.total, ctx.choice = p.shared.choice;
    if constexpr (kExperts) barrier_init(&chosen_experts().made, 1);
    ctx.n_slots = p.shared.n_slots, ctx.slot_bytes = p.shared.slot_bytes, ctx.act_row_bytes = p.shared.act_row_bytes;
    ctx.n_rows = p.n_rows, ctx.dim = p.dim;
    ctx.per_grid = 0xffffffffu / gridDim.x + 1;  // of one CTA it does not fit, and is not asked for
    ctx.single = p.single_stage != 0, ctx.x_save = p.x_save;
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  if (t < kConsumers) {
    copy_stage<kConsumers>(decode_stages()[0], p, p.begin, t);
    if (p.begin + 1 < p.end) copy_stage<kConsumers>(decode_stages()[1], p, p.begin + 1, t);
  }
  if (t < kConsumers && t % 32 == 0) {
    const int team = t / (team_warps(M) * 32);
    ctx.walk[t / 32] = {p.begin, 0, {}, {team, 0, team}, {}, AfterRun::run, false, false, false};
  }
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
  wait_for_copies();
  __syncthreads();
  start_next_kernel();  // which finds no room before this one ends
  if (t >= kConsumers) return fetch_all<M, kExperts>(p);
  int stage = p.begin, which = 0;
  WarpWalk* walk = &this_walk();
  while (true) {
    // The description two stages ahead is asked for now and needed later.
    const int after_next = stage + 2;
    if (after_next < p.end)
      copy_stage<kConsumers>(decode_stages()[after_which(after_which(which))], p, after_next, helper_thread());
    if (decode_stages()[which].kind == StageKind::attention) {
      attention_stage<M, kExperts>(p.shared.act, after_next <= p.end);
    } else {
      product_stage<M, kExperts>(*walk);
    }
    walk = &this_walk();
    stage = walk->stage + 1, which = after_which(walk->which);
    if (stage >= p.end) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) walk->stage = stage, walk->which = which;
    __syncwarp();
  }
}

template <int M, bool kExperts = false>
void launch_decode_rows(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  const auto kernel = decode_kernel<M, kExperts>;
  const int bytes = kFixedShared + launch.shared.total;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "decode");
  const dim3 grid(static_cast<unsigned>(n_ctas)), block(kConsumers + 32);
  if (cooperative) {
    DecodeLaunch copy = launch;
    void* args[] = {&copy};
    check(cudaLaunchCooperativeKernel(kernel, grid, block, args, static_cast<size_t>(bytes), stream), "decode");
  } else {
    kernel<<<grid, block, static_cast<size_t>(bytes), stream>>>(launch);
    check(cudaGetLastError(), "decode");
  }
}

}  // namespace infer::cuda
