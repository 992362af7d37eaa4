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

/// All shared memory of a CTA: kFixedShared bytes of what is always there (decode_context.cuh), then what the plan lays
/// out, the ring first. By these names, not by pointers kept somewhere: so the compiler sees that accesses are to
/// shared memory, with addresses of 32 bits.
extern __shared__ __align__(128) uint8_t decode_shared[];
#if __CUDA_ARCH__ == 900
/// There it begins behind the kilobyte that the system keeps, since the kernel has no other shared memory (it looks
/// once whether that is so). A name's address is asked of the machine every time (SR_CgaCtaId, 30 cycles, in each
/// function and after each call); a number is not.
inline constexpr uint32_t kSharedBegin = 1024;
__device__ __forceinline__ uint8_t* decode_fixed() {
  return static_cast<uint8_t*>(__cvta_shared_to_generic(kSharedBegin));
}
#else
__device__ __forceinline__ uint8_t* decode_fixed() { return decode_shared; }
#endif
__device__ __forceinline__ uint8_t* decode_memory() { return decode_fixed() + kFixedShared; }

struct RingBarriers {
  uint64_t full[kMaxSlots], empty[kMaxSlots];
};

/// A slot of the ring as the fetching warp knows it: its full barrier's address, and the parity of the round.
struct FetchPlace {
  uint32_t full, parity;
  __device__ __forceinline__ bool advance(uint32_t first, uint32_t end) {
    full += 8;
    if (full != end) return false;
    full = first, parity ^= 1;
    return true;
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

/// Lanes of the fetching warp that work. With bulk copies it is one: a chunk has some 900 cycles, and lanes that wait
/// for one another took half of them.
#if __CUDA_ARCH__ >= 900
inline constexpr int kFetchLanes = 1;
#else
inline constexpr int kFetchLanes = 32;
#endif

/// Whether this lane of the fetching warp works. The lane is the machine's choice: only then does the compiler know
/// that it is one, and needs no loop over lanes around each bulk copy.
__device__ __forceinline__ bool fetches() {
#if __CUDA_ARCH__ >= 900
  uint32_t mine;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(mine));
  return mine != 0;
#else
  return true;
#endif
}

/// What the fetching warp knows; all in registers. Its loop decides how soon the memory is asked again, so it has as
/// few instructions as there can be.
class Fetcher {
 public:
  __device__ Fetcher(const SharedPlan& plan, RingBarriers& barriers)
      : first_(kept_in_register(shared_address(barriers.full))),
        end_(first_ + plan.n_slots * 8),
        memory_(kept_in_register(shared_address(decode_memory()))),
        slot_bytes_(plan.slot_bytes),
        slot_(memory_),
        place_{first_, 0},
        // Nothing is to be waited for before as many slots as may be in flight are asked for: an odd parity is behind.
        oldest_{end_ - min(plan.in_flight, plan.n_slots) * 8, 1} {
#if __CUDA_ARCH__ >= 900
    once_ = evict_first_policy(), again_ = evict_normal_policy();
#endif
  }

  /// The next chunk, as soon as there is room for it.
  __device__ __forceinline__ void push(const ChunkCopy& c) {
    wait_for_room();
    expect(c.bytes * c.pieces);
    uint32_t slot = slot_;
    const uint8_t* from = c.from;
    for (int r = 0; r < c.pieces; ++r, slot += c.bytes, from += c.stride) copy(slot, from, c.bytes, false);
    advance();
  }
  /// The same of keys and values, which may be wanted again in the next step.
  __device__ __forceinline__ void push_pair(const uint8_t* k, int k_bytes, const uint8_t* v, int v_bytes) {
    wait_for_room();
    expect(k_bytes + v_bytes);
    copy(slot_, k, k_bytes, true);
    copy(slot_ + k_bytes, v, v_bytes, true);
    advance();
  }

  /// All chunks of this CTA's tiles of a stage, in the order in which its teams take them: matrix after matrix, or
  /// where two make a unit, tiles of both in turn.
  template <int kPlainRows>
  __device__ void product(const DecodeStage& s) {
    int tile = static_cast<int>(blockIdx.x) - s.first_cta, m = 0;
    if (tile < 0) tile += static_cast<int>(gridDim.x);
    const bool in_turn = s.n_parts == 2;
    while (true) {
      int n_tiles = s.w[m].n_tiles;
      while (tile >= n_tiles) {
        if (in_turn || ++m >= s.n_matrices) return;
        tile -= n_tiles, n_tiles = s.w[m].n_tiles;
      }
      push_any<kPlainRows>(s.w[m], s.w[m].data, tile);
      if (in_turn) m ^= 1;
      if (!in_turn || m == 0) tile += static_cast<int>(gridDim.x);
    }
  }

  /// The same of gate and up of the experts `ids`.
  template <int kPlainRows>
  __device__ void experts_up(const DecodeStage& s, const int* ids) {
    const ExpertsArg& e = s.experts;
    int tile = static_cast<int>(blockIdx.x) - s.first_cta;
    if (tile < 0) tile += static_cast<int>(gridDim.x);
    for (; tile < s.n_units; tile += static_cast<int>(gridDim.x)) {
      const int place = tile / e.n_tiles, id = ids[place], of_expert = tile - place * e.n_tiles;
#pragma unroll 1
      for (int m = 0; m < 2; ++m) push_any<kPlainRows>(s.w[m], s.w[m].data + id * e.expert_bytes[m], of_expert);
    }
  }
  /// And of their down.
  template <int kPlainRows>
  __device__ void experts_down(const DecodeStage& s, const int* ids) {
    int tile = static_cast<int>(blockIdx.x) - s.first_cta;
    if (tile < 0) tile += static_cast<int>(gridDim.x);
    for (; tile < s.n_units; tile += static_cast<int>(gridDim.x)) push_joined<kPlainRows>(s, tile, ids);
  }

 private:
  // What is to be copied is known before there is room for it: time between the two would be time that the memory
  // rests, since few bytes are in flight.

  template <int kPlainRows>
  __device__ __forceinline__ void push_any(const MatrixArg& m, const uint8_t* data, int tile) {
    if (m.is_plain) {
      push_rows<kPlainRows>(m, data, tile);
    } else {
      push_tile(m, data, tile);
    }
  }

  __device__ __forceinline__ void push_tile(const MatrixArg& m, const uint8_t* data, int tile) {
    ChunkCopy copy{data + tile * m.tile_bytes, 0, m.chunk_bytes, 1};
    const int last_bytes = m.last_bytes;
#pragma unroll 1
    for (int left = m.n_chunks; left > 0; --left) {
      if (left == 1) copy.bytes = last_bytes;
      push(copy);
      copy.from += copy.bytes;
    }
  }

  /// A tile of plain weights: the chunks of its blocks of rows in turn, then those of the next columns.
  template <int kPlainRows>
  __device__ __forceinline__ void push_rows(const MatrixArg& m, const uint8_t* data, int tile) {
    constexpr int kBlocks = kTileRows / kPlainRows;
    const int64_t stride = m.tile_bytes;
    const int rows = m.rows - tile * kTileRows, last_bytes = m.last_bytes;
    const bool whole = m.chunk_bytes == stride;  // rows lie one after the other
    int bytes = m.chunk_bytes;
    const uint8_t* columns = data + tile * kTileRows * stride;
#pragma unroll 1
    for (int left = m.n_chunks; left > 0; left -= kBlocks) {
      if (left == kBlocks) bytes = last_bytes;
      ChunkCopy copy{columns, stride, whole ? kPlainRows * bytes : bytes, whole ? 1 : kPlainRows};
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (rows < kTileRows) {
          copy.bytes = bytes, copy.pieces = max(0, min(kPlainRows, rows - block * kPlainRows));
        }
        push(copy);
        copy.from += kPlainRows * stride;
      }
      columns += bytes;
    }
  }

  /// A tile of matrices that lie side by side: as the two before, but that a chunk, or a row of one, may begin with one
  /// expert's bytes and end with another's.
  template <int kPlainRows>
  __device__ __forceinline__ void push_joined(const DecodeStage& s, int tile, const int* ids) {
    const MatrixArg& m = s.w[0];
    const int64_t expert_bytes = s.experts.expert_bytes[0];
    const int row_bytes = static_cast<int>(m.tile_bytes);  // of one expert; of a tile of it where that is packed
    const int n_blocks = m.is_plain ? kTileRows / kPlainRows : 1, n_rows = m.is_plain ? kPlainRows : 1;
    const uint8_t* rows = m.data + (m.is_plain ? tile * kTileRows : tile) * m.tile_bytes;
    int begin = 0, first = 0;  // of this chunk: in the row of expert number `first`
#pragma unroll 1
    for (int left = m.n_chunks; left > 0; left -= n_blocks) {
      const int bytes = left == n_blocks ? m.last_bytes : m.chunk_bytes;
      int end = begin, last = first;
#pragma unroll 1
      for (int block = 0; block < n_blocks; ++block) {
        end = begin, last = first;
        const uint8_t* from = rows + ids[last] * expert_bytes + end;
        wait_for_room();
        expect(bytes * n_rows);
        for (int done = 0; done < bytes;) {
          const int n = min(bytes - done, row_bytes - end);
#pragma unroll 1
          for (int r = 0; r < n_rows; ++r) copy(slot_ + r * bytes + done, from + r * row_bytes, n, false);
          done += n, end += n;
          if (end < row_bytes) continue;
          end = 0;
          if (++last < s.n_active) from = rows + ids[last] * expert_bytes;
        }
        advance();
        rows += n_rows * row_bytes;
      }
      rows -= n_blocks * n_rows * row_bytes;
      begin = end, first = last;
    }
  }

  __device__ __forceinline__ void wait_for_room() {
    if (kFetchLanes == 1 || threadIdx.x % 32 == 0) {
      barrier_wait(place_.full + kMaxSlots * 8, place_.parity ^ 1);  // until it is empty
      barrier_wait(oldest_.full, oldest_.parity);                    // until few enough bytes are in flight
    }
    oldest_.advance(first_, end_);
    if (kFetchLanes > 1) __syncwarp();
  }
  __device__ __forceinline__ void expect(int bytes) {
#if __CUDA_ARCH__ >= 900
    barrier_expect(place_.full, bytes);
#endif
  }
  __device__ __forceinline__ void copy(uint32_t to, const uint8_t* from, int bytes, bool again) {
#if __CUDA_ARCH__ >= 900
    bulk_copy(to, from, bytes, place_.full, again ? again_ : once_);
#else
    for (int i = threadIdx.x % 32 * 16; i < bytes; i += 512)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
#endif
  }
  __device__ __forceinline__ void advance() {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(place_.full) : "memory");
#endif
    slot_ = place_.advance(first_, end_) ? memory_ : slot_ + slot_bytes_;
  }

  uint32_t first_, end_;  ///< shared addresses of full barriers; those of empty slots follow them
  uint32_t memory_, slot_bytes_, slot_;
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
