// The weight stream of a CTA: a ring of slots in shared memory that one warp keeps full and sixteen warps empty. The
// fetching warp plays all chunks that this CTA will ever need, in the order in which the stages use them, and never
// waits for a stage: weights depend on nothing. At most `in_flight` slots are asked for and not yet there, because
// every byte in flight adds to the latency of everything else in the memory system (measured: 40 KB an SM is best for 4
// and 8 bits, 80 KB for 16). Bulk copies on sm_90 and later, cp.async before.
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
  /// Bytes of the chunk; of plain weights those of each row.
  __device__ __forceinline__ int bytes() const { return chunk + 1 < w().n_chunks ? w().chunk_bytes : w().last_bytes; }
  /// Pieces of bytes() bytes each, stride() apart in global memory and adjacent in the slot.
  __device__ __forceinline__ int pieces() const {
    return w().is_plain ? min(kTileRows, w().rows - tile * kTileRows) : 1;
  }
  __device__ __forceinline__ int64_t stride() const { return w().is_plain ? w().tile_bytes : 0; }
  __device__ __forceinline__ const uint8_t* data() const {
    const int64_t tiles = static_cast<int64_t>(tile) * (w().is_plain ? kTileRows : 1);
    return w().data + tiles * w().tile_bytes + static_cast<int64_t>(chunk) * w().chunk_bytes;
  }

 private:
  __device__ __forceinline__ void find_tile() {
    if (!valid()) return;
    tile = unit, matrix = part;
    if (stage->n_parts == 1)
      for (; tile >= stage->w[matrix].n_tiles; ++matrix) tile -= stage->w[matrix].n_tiles;
  }
};

/// The fetching warp. While the ring is full, which is most of the time between two stages, it asks the L2 for what
/// comes next, no faster than memory is: so the memory does not rest either.
class Fetcher {
 public:
  __device__ Fetcher(const SharedPlan& plan, RingBarriers& barriers)
      : plan_(plan), barriers_(barriers), lane_(threadIdx.x % 32) {
#if __CUDA_ARCH__ >= 900
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
#endif
  }

  /// All chunks of a stage; `next`: the one that comes after it, or null.
  __device__ void product(const DecodeStage& s, const DecodeStage* next) {
    ChunkCursor at;
    at.start(s);
    if (n_ahead_ == 0) ahead_ = at;
    next_ = next;
    for (; at.valid(); at.next()) {
      wait_for_room();
      copy(at, decode_memory + place_.slot * plan_.slot_bytes, &barriers_.full[place_.slot]);
      place_.advance(plan_.n_slots);
      ++count_;
      if (n_ahead_ > 0) {
        --n_ahead_;
      } else {
        ahead_.next();
      }
    }
  }

 private:
  __device__ void wait_for_room() {
#if __CUDA_ARCH__ >= 900
    while (!barrier_test(&barriers_.empty[place_.slot], place_.phase ^ 1)) {
      if (!prefetch()) break;
    }
#endif
    if (lane_ == 0) {
      barrier_wait(&barriers_.empty[place_.slot], place_.phase ^ 1);
      if (count_ >= plan_.in_flight && plan_.in_flight < plan_.n_slots) {
        barrier_wait(&barriers_.full[oldest_.slot], oldest_.phase);
        oldest_.advance(plan_.n_slots);
      }
    }
    __syncwarp();
  }

#if __CUDA_ARCH__ >= 900
  /// Asks for the next chunk that has not been asked for, when it is time; false when that is as far ahead as may be.
  __device__ bool prefetch() {
    if (!ahead_.valid()) {
      if (!next_ || ahead_.stage == next_) return false;
      ahead_.start(*next_);
      if (!ahead_.valid()) return false;
    }
    if (n_ahead_ >= plan_.most_ahead) return false;
    const uint32_t now = static_cast<uint32_t>(clock());
    if (__shfl_sync(~0u, now - last_, 0) < wait_) return true;
    const int bytes = ahead_.bytes(), pieces = ahead_.pieces();
    if (lane_ < pieces)
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(ahead_.data() + lane_ * ahead_.stride()),
                   "r"(bytes)
                   : "memory");
    last_ = now, wait_ = static_cast<uint32_t>(bytes * pieces / kBytesPerCycle);
    ahead_.next();
    ++n_ahead_;
    return true;
  }
#endif

  __device__ void copy(const ChunkCursor& at, uint8_t* slot, uint64_t* full) {
    const int bytes = at.bytes(), pieces = at.pieces();
    const uint8_t* from = at.data();
    const int64_t stride = at.stride();
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0)
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)),
                   "r"(bytes * pieces)
                   : "memory");
    __syncwarp();
    if (lane_ < pieces)
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
          "%4;" ::"r"(shared_address(slot) + lane_ * bytes),
          "l"(from + lane_ * stride), "r"(bytes), "r"(shared_address(full)), "l"(policy_)
          : "memory");
#else
    for (int r = 0; r < pieces; ++r)
      for (int i = lane_ * 16; i < bytes; i += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(slot) + r * bytes + i),
                     "l"(from + r * stride + i)
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
#endif
  }

  static constexpr int kBytesPerCycle = 16;  ///< of an SM's share of the memory's speed, about
  const SharedPlan& plan_;
  RingBarriers& barriers_;
  int lane_, count_ = 0, n_ahead_ = 0;  ///< chunks fetched; prefetched beyond them
  FetchPlace place_, oldest_;
  ChunkCursor ahead_;
  const DecodeStage* next_ = nullptr;
#if __CUDA_ARCH__ >= 900
  uint32_t last_ = 0, wait_ = 0;
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
