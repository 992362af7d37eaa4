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
  int unit, part, chunk, tile, matrix;

  __device__ __forceinline__ void start(const DecodeStage& s) {
    stage = &s;
    unit = static_cast<int>(blockIdx.x) - s.first_cta;
    if (unit < 0) unit += static_cast<int>(gridDim.x);
    part = chunk = 0;
    find_tile();
  }
  __device__ __forceinline__ bool valid() const { return unit < stage->n_units; }
  __device__ __forceinline__ const MatrixArg& w() const { return stage->w[matrix]; }
  __device__ __forceinline__ void next() {
    if (++chunk < w().n_chunks) return;
    chunk = 0;
    if (++part == stage->n_parts) part = 0, unit += static_cast<int>(gridDim.x);
    find_tile();
  }
  __device__ __forceinline__ ChunkCopy copy() const {
    const MatrixArg& m = w();
    const int bytes = chunk + 1 < m.n_chunks ? m.chunk_bytes : m.last_bytes;
    const int64_t at = static_cast<int64_t>(chunk) * m.chunk_bytes;
    if (!m.is_plain) return {m.data + tile * m.tile_bytes + at, 0, bytes, 1};
    return {m.data + static_cast<int64_t>(tile) * kTileRows * m.tile_bytes + at, m.tile_bytes, bytes,
            min(kTileRows, m.rows - tile * kTileRows)};
  }

 private:
  __device__ __forceinline__ void find_tile() {
    if (!valid()) return;
    tile = unit, matrix = part;
    if (stage->n_parts == 1)
      for (; tile >= stage->w[matrix].n_tiles; ++matrix) tile -= stage->w[matrix].n_tiles;
  }
};

/// The fetching warp.
class Fetcher {
 public:
  __device__ Fetcher(const SharedPlan& plan, RingBarriers& barriers)
      : plan_(plan), barriers_(barriers), lane_(threadIdx.x % 32) {
#if __CUDA_ARCH__ >= 900
    once_ = evict_first_policy(), again_ = evict_normal_policy();
#endif
  }

  /// The next chunk, as soon as there is room for it. kAgain: it may be wanted again in the next step.
  template <bool kAgain = false>
  __device__ __forceinline__ void push(const ChunkCopy& copy) {
    wait_for_room();
    start<kAgain>(copy, decode_memory + place_.slot * plan_.slot_bytes, &barriers_.full[place_.slot]);
    place_.advance(plan_.n_slots);
    ++count_;
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

  template <bool kAgain>
  __device__ __forceinline__ void start(const ChunkCopy& c, uint8_t* slot, uint64_t* full) {
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0) barrier_expect(full, c.bytes * c.pieces);
    __syncwarp();
    if (lane_ < c.pieces)
      bulk_copy(shared_address(slot) + lane_ * c.bytes, c.from + lane_ * c.stride, c.bytes, full,
                kAgain ? again_ : once_);
#else
    for (int r = 0; r < c.pieces; ++r)
      for (int i = lane_ * 16; i < c.bytes; i += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(slot) + r * c.bytes + i),
                     "l"(c.from + r * c.stride + i)
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
#endif
  }

  const SharedPlan& plan_;
  RingBarriers& barriers_;
  int lane_, count_ = 0;
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
