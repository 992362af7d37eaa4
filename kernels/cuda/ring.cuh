// The weight stream of a CTA: a ring of slots in shared memory that one warp keeps full and sixteen warps empty. The
// fetching warp plays all chunks that this CTA will ever need, in the order in which the stages use them, and never
// waits for a stage: weights depend on nothing. At most `in_flight` slots are asked for and not yet there, because
// every byte in flight adds to the latency of everything else in the memory system (measured: 40 KB an SM is best for 4
// and 8 bits, 80 KB for 16). Bulk copies on sm_90 and later, cp.async before.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/program.h"

namespace infer::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void barrier_init(uint64_t* b, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count));
}
__device__ __forceinline__ void barrier_arrive(uint64_t* b) {
  asm volatile("{\n.reg .b64 s;\nmbarrier.arrive.shared.b64 s, [%0];\n}" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* b, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nwait:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra "
      "wait;\ndone:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
#else
  uint32_t done = 0;
  while (!done)
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(b)), "r"(parity)
                 : "memory");
#endif
}
__device__ __forceinline__ bool barrier_test(uint64_t* b, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(b)), "r"(parity)
               : "memory");
  return done != 0;
}

#if __CUDA_ARCH__ >= 900
/// Of what is read once: it shall leave the L2 before anything else.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Arrives at a barrier that `bytes` bytes of bulk copies will complete.
__device__ __forceinline__ void barrier_expect(uint64_t* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
/// A contiguous piece of global memory, a multiple of 16 bytes at multiples of 16, by one thread.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const uint8_t* from, int bytes, uint64_t* full,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
      : "memory");
}
#endif

/// All dynamic shared memory of a CTA, the ring first. By this name, not by pointers kept somewhere: so the compiler
/// sees that accesses are to shared memory, with addresses of 32 bits.
extern __shared__ __align__(128) uint8_t decode_memory[];

struct RingBarriers {
  uint64_t full[kMaxSlots], empty[kMaxSlots];
};

/// Which slot comes next, how often the ring went round, and whose turn it is; both sides count alike.
struct RingPlace {
  int slot = 0;
  uint32_t phase = 0, team = 0;
  __device__ __forceinline__ void advance(int n_slots) {
    team ^= 1;
    if (++slot == n_slots) slot = 0, phase ^= 1;
  }
};

/// The fetching warp.
class Fetcher {
 public:
  __device__ Fetcher(const SharedPlan& plan, RingBarriers& barriers)
      : plan_(plan), barriers_(barriers), lane_(threadIdx.x % 32) {
#if __CUDA_ARCH__ >= 900
    policy_ = evict_first_policy();
#endif
  }

  __device__ void product(const DecodeStage& s) {
    const int n_ctas = gridDim.x;
    int cta = static_cast<int>(blockIdx.x) - s.first_cta;
    if (cta < 0) cta += n_ctas;
    for (int unit = cta; unit < s.n_units; unit += n_ctas)
      for (int part = 0; part < s.n_parts; ++part) {
        int tile = unit, matrix = part;
        if (s.n_parts == 1)
          for (; tile >= s.w[matrix].n_tiles; ++matrix) tile -= s.w[matrix].n_tiles;
        fetch_tile(s.w[matrix], tile);
      }
  }

 private:
  __device__ void fetch_tile(const MatrixArg& w, int tile) {
    for (int c = 0; c < w.n_chunks; ++c) {
      const int bytes = c + 1 < w.n_chunks ? w.chunk_bytes : w.last_bytes;
      wait_for_room();
      uint8_t* slot = decode_memory + place_.slot * plan_.slot_bytes;
      uint64_t* full = &barriers_.full[place_.slot];
      if (w.is_plain) {
        const int left = w.rows - tile * 16, rows = left < 16 ? left : 16;
        const uint8_t* from = w.data + tile * 16 * w.tile_bytes + static_cast<int64_t>(c) * w.chunk_bytes;
        copy(slot, from, bytes, rows, w.tile_bytes, full);
      } else {
        copy(slot, w.data + tile * w.tile_bytes + static_cast<int64_t>(c) * w.chunk_bytes, bytes, 1, 0, full);
      }
      place_.advance(plan_.n_slots);
      ++count_;
    }
  }

  __device__ void wait_for_room() {
    if (lane_ == 0) {
      barrier_wait(&barriers_.empty[place_.slot], place_.phase ^ 1);
      if (count_ >= plan_.in_flight && plan_.in_flight < plan_.n_slots) {
        barrier_wait(&barriers_.full[oldest_.slot], oldest_.phase);
        oldest_.advance(plan_.n_slots);
      }
    }
    __syncwarp();
  }

  /// `rows` pieces of `bytes` bytes, `stride` apart in global memory and adjacent in the slot.
  __device__ void copy(uint8_t* slot, const uint8_t* from, int bytes, int rows, int64_t stride, uint64_t* full) {
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0) barrier_expect(full, bytes * rows);
    __syncwarp();
    if (lane_ < rows) bulk_copy(shared_address(slot) + lane_ * bytes, from + lane_ * stride, bytes, full, policy_);
#else
    for (int r = 0; r < rows; ++r)
      for (int i = lane_ * 16; i < bytes; i += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(slot) + r * bytes + i),
                     "l"(from + r * stride + i)
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
#endif
  }

  const SharedPlan& plan_;
  RingBarriers& barriers_;
  int lane_, count_ = 0;
  RingPlace place_, oldest_;
#if __CUDA_ARCH__ >= 900
  uint64_t policy_ = 0;
#endif
};

/// Arrivals that fill a slot: the bulk copies' bytes count for themselves, cp.async arrives once a lane.
#if __CUDA_ARCH__ >= 900
inline constexpr int kFullArrivals = 1;
#else
inline constexpr int kFullArrivals = 32;
#endif

}  // namespace infer::cuda
