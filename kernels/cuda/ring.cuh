// The weight stream of a CTA: a ring of slots in shared memory that one warp keeps full and sixteen warps empty. The
// fetching warp plays all chunks that this CTA will ever need, in the order in which the stages use them, and never
// waits for a stage: weights, and the keys and values of earlier steps, depend on nothing. At most `in_flight` slots
// are asked for and not yet there, because every byte in flight adds to the latency of everything else in the memory
// system (measured: 40 KB an SM is best for 4 and 8 bits, 80 KB for 16). Bulk copies on sm_90 and later, cp.async
// before.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/packed.h"
#include "kernels/cuda/program.h"

namespace infer::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void barrier_init(uint64_t* b, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count));
}
/// The same value, but the compiler does not know how to find it anew and keeps it.
__device__ __forceinline__ uint32_t kept_in_register(uint32_t v) {
  asm volatile("" : "+r"(v));
  return v;
}
__device__ __forceinline__ void barrier_arrive(uint32_t shared) {
  asm volatile("{\n.reg .b64 s;\nmbarrier.arrive.shared.b64 s, [%0];\n}" ::"r"(shared) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* b) { barrier_arrive(shared_address(b)); }
__device__ __forceinline__ void barrier_wait(uint32_t shared, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nwait:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra "
      "wait;\ndone:\n}" ::"r"(shared),
      "r"(parity)
      : "memory");
#else
  uint32_t done = 0;
  while (!done)
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared), "r"(parity)
                 : "memory");
#endif
}
__device__ __forceinline__ void barrier_wait(uint64_t* b, uint32_t parity) { barrier_wait(shared_address(b), parity); }
__device__ __forceinline__ bool barrier_test(uint64_t* b, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(b)), "r"(parity)
               : "memory");
  return done != 0;
}

#if __CUDA_ARCH__ >= 900
/// Of weights, which no L2 holds until the next step: they shall leave it before anything else.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Of keys and values.
__device__ __forceinline__ uint64_t evict_normal_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Arrives at a barrier that `bytes` bytes of bulk copies will complete.
__device__ __forceinline__ void barrier_expect(uint32_t shared, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared), "r"(bytes) : "memory");
}
/// A contiguous piece of global memory, a multiple of 16 bytes at multiples of 16, by one thread.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const uint8_t* from, int bytes, uint32_t full,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(from), "r"(bytes), "r"(full), "l"(policy)
      : "memory");
}
#endif

/// After a thread has written to a slot, before the slot may be filled again.
__device__ __forceinline__ void before_refill() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// All dynamic shared memory of a CTA, the ring first. By this name, not by pointers kept somewhere: so the compiler
/// sees that accesses are to shared memory, with addresses of 32 bits.
extern __shared__ __align__(128) uint8_t decode_memory[];

struct RingBarriers {
  uint64_t full[kMaxSlots], empty[kMaxSlots];
};

/// Which slot the fetching warp fills next, and how often the ring went round.
struct FetchPlace {
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance(int n_slots) {
    if (++slot == n_slots) slot = 0, phase ^= 1;
  }
};

/// Where a team is in the stream of chunks, of which each team takes one in turn: its next slot, and how many chunks of
/// the other teams come before that one.
struct RingPlace {
  int slot;
  uint32_t phase;
  int skip;
  __device__ __forceinline__ void advance(int n_slots, int n_teams) {
    slot += n_teams;
    if (slot >= n_slots) slot -= n_slots, phase ^= 1;
  }
};

/// 16 bytes from global to shared memory, on their way when this returns.
__device__ __forceinline__ void copy_async16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// `pieces` pieces of `bytes` bytes each, `stride` apart in global memory and adjacent in a slot.
struct ChunkCopy {
  const uint8_t* from;
  int64_t stride;
  int bytes, pieces;
};

/// Chunk after chunk of what this CTA does in a stage.
struct ChunkCursor {
  const DecodeStage* stage;
  int unit, part, chunk, n_chunks, chunk_bytes, last_bytes, pieces;
  const uint8_t* from;
  int64_t stride;

  __device__ __forceinline__ void start(const DecodeStage& s) {
    stage = &s;
    unit = static_cast<int>(blockIdx.x) - s.first_cta;
    if (unit < 0) unit += static_cast<int>(gridDim.x);
    part = 0;
    find_tile();
  }
  __device__ __forceinline__ bool valid() const { return unit < stage->n_units; }
  __device__ __forceinline__ void next() {
    from += chunk_bytes;
    if (++chunk < n_chunks) return;
    if (++part == stage->n_parts) part = 0, unit += static_cast<int>(gridDim.x);
    find_tile();
  }
  __device__ __forceinline__ ChunkCopy copy() const {
    return {from, stride, chunk + 1 < n_chunks ? chunk_bytes : last_bytes, pieces};
  }

 private:
  __device__ __forceinline__ void find_tile() {
    if (!valid()) return;
    int tile = unit, matrix = part;
    if (stage->n_parts == 1)
      for (; tile >= stage->w[matrix].n_tiles; ++matrix) tile -= stage->w[matrix].n_tiles;
    const MatrixArg& m = stage->w[matrix];
    chunk = 0, n_chunks = m.n_chunks, chunk_bytes = m.chunk_bytes, last_bytes = m.last_bytes;
    pieces = m.is_plain ? min(kTileRows, m.rows - tile * kTileRows) : 1;
    stride = m.is_plain ? m.tile_bytes : 0;
    from = m.data + static_cast<int64_t>(tile) * (m.is_plain ? kTileRows : 1) * m.tile_bytes;
  }
};

/// Lanes of the fetching warp that work. With bulk copies it is one: a chunk has some 900 cycles, and lanes that wait
/// for one another took half of them.
#if __CUDA_ARCH__ >= 900
inline constexpr int kFetchLanes = 1;
#else
inline constexpr int kFetchLanes = 32;
#endif

/// What the fetching warp knows; all in registers.
class Fetcher {
 public:
  __device__ Fetcher(const SharedPlan& plan, RingBarriers& barriers)
      : full_(kept_in_register(shared_address(barriers.full))),
        memory_(kept_in_register(shared_address(decode_memory))),
        n_slots_(plan.n_slots),
        slot_bytes_(plan.slot_bytes),
        to_fly_(plan.in_flight < plan.n_slots ? plan.in_flight : INT32_MAX) {
#if __CUDA_ARCH__ >= 900
    once_ = evict_first_policy(), again_ = evict_normal_policy();
#endif
  }

  /// The next chunk, as soon as there is room for it. kAgain: it may be wanted again in the next step.
  template <bool kAgain = false>
  __device__ __forceinline__ void push(const ChunkCopy& copy) {
    const uint32_t full = full_ + place_.slot * 8, slot = memory_ + place_.slot * slot_bytes_;
    if (kFetchLanes == 1 || threadIdx.x % 32 == 0) {
      barrier_wait(full + kMaxSlots * 8, place_.phase ^ 1);  // until it is empty
      if (to_fly_ > 0) {
        --to_fly_;
      } else {
        barrier_wait(full_ + oldest_.slot * 8, oldest_.phase);
        oldest_.advance(n_slots_);
      }
    }
    start<kAgain>(copy, slot, full);
    place_.advance(n_slots_);
  }

  /// All chunks of a stage. What is to be copied is known before there is room for it: time between the two would be
  /// time that the memory rests, since few bytes are in flight.
  __device__ void product(const DecodeStage& s) {
    ChunkCursor at;
    at.start(s);
    if (!at.valid()) return;
    ChunkCopy copy = at.copy();
    for (bool more = true; more;) {
      push(copy);
      at.next();
      more = at.valid();
      if (more) copy = at.copy();
    }
  }

 private:
  template <bool kAgain>
  __device__ __forceinline__ void start(const ChunkCopy& c, uint32_t slot, uint32_t full) {
#if __CUDA_ARCH__ >= 900
    const uint64_t policy = kAgain ? again_ : once_;
    barrier_expect(full, c.bytes * c.pieces);
    bulk_copy(slot, c.from, c.bytes, full, policy);
    const uint8_t* from = c.from;
    for (int r = 1; r < c.pieces; ++r) {
      slot += c.bytes, from += c.stride;
      bulk_copy(slot, from, c.bytes, full, policy);
    }
#else
    __syncwarp();
    for (int r = 0; r < c.pieces; ++r)
      for (int i = threadIdx.x % 32 * 16; i < c.bytes; i += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(slot + r * c.bytes + i),
                     "l"(c.from + r * c.stride + i)
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full) : "memory");
#endif
  }

  uint32_t full_, memory_;  ///< shared addresses; the barriers of empty slots follow those of full ones
  int n_slots_, slot_bytes_;
  int to_fly_;  ///< copies that may start before the oldest one has to be there
  FetchPlace place_, oldest_;
#if __CUDA_ARCH__ >= 900
  uint64_t once_ = 0, again_ = 0;
#endif
};

/// Arrivals that fill a slot: the bulk copies' bytes count for themselves, cp.async arrives once a lane.
#if __CUDA_ARCH__ >= 900
inline constexpr int kFullArrivals = 1;
#else
inline constexpr int kFullArrivals = 32;
#endif

}  // namespace infer::cuda
