// What all parts of the decode kernel share: the CTA's view of a launch and the stage at hand. They lie in shared
// memory at addresses that the compiler knows, and functions that are not inlined find them there: what is passed by
// reference or kept across calls ends up in local memory, and since the ring leaves hardly any L1, that costs up to a
// trip to the L2 each time (profiled: a fifth of a step).
#pragma once

#include "kernels/cuda/program.h"
#include "kernels/cuda/ring.cuh"

namespace infer::cuda {

inline constexpr int kKeptPages = 64;

/// Which tile of a stage comes next: part `part` of a unit; how many tiles wait for being finished, and the unit of the
/// first of those.
struct TileWalk {
  int unit, part, kept, first;
};

/// Tiles that follow one another in a CTA and are of one format; their sums go to the places `kept` and on.
struct TileRun {
  int n_tiles, matrix, kernel, kept;
  int scales;  ///< of a group of activations that lie by token
};

/// What comes after a run: another one, or finishing what is kept and then more of the stage or nothing.
enum class AfterRun : int { run, finish_some, finish };

/// What a warp keeps from call to call.
struct WarpWalk {
  int stage, which;  ///< its number in the program; which of decode_stages describes it
  TileWalk tiles;    ///< after the run
  RingPlace place;
  TileRun run;  ///< the one at hand: found before the activations are there, when there is time
  AfterRun after;
  bool found;     ///< the next product's first run, by the attention stage before it
  bool attended;  ///< there were units of that attention for this CTA
  bool meets;     ///< some of its parts were split
};

/// A token's experts: found by one warp, wanted by the fetching one, and when their hidden values are finished.
struct ChosenExperts {
  uint64_t made;  ///< barrier
  int ids[kMostActive];
  float weights[kMostActive];
  /// Behind it: a row of the router's weights.
  __device__ __forceinline__ uint8_t* router() { return reinterpret_cast<uint8_t*>(this) + kChoiceBytes; }
};
static_assert(sizeof(ChosenExperts) <= kChoiceBytes);

struct DecodeContext {
  WarpWalk walk[kWarps];  ///< of each consumer warp
  /// Offsets into decode_memory: activation rows; where sums end; the choice of experts. Between them: rows of x that
  /// this CTA adds to, f32 [2][own_tiles][rows][16], the two copies at DecodeStage::own_at.
  int act, sums_end, choice;
  int n_slots, slot_bytes, act_row_bytes, n_rows, dim;
  unsigned per_grid;  ///< 2^32 / CTAs, rounded up: x / CTAs is the upper word of x * per_grid for x * CTAs < 2^32
  alignas(16) float reduce[kMaxDecodeRows][kWarps];  ///< sums of squares
  alignas(16) float branch_reduce[kMaxDecodeRows][kWarps];
  int kv_len[kMaxDecodeRows], position[kMaxDecodeRows], cache_slot[kMaxDecodeRows];
  int pages[kMaxDecodeRows][kKeptPages];  ///< the first of each row
  bool single;                            ///< a launch of one stage: own() comes from and goes to x_save
  float* x_save;
  float factor[kMaxDecodeRows];  ///< of the sums: what of 1 / rms is left to the epilogue
  float ahead[kMaxDecodeRows];   ///< a power of two near 1 / rms of the last residual input

  __device__ __forceinline__ uint8_t* act_row(int m) const { return decode_memory() + act + m * act_row_bytes; }
  /// f32 [kWarps][M][16] of the kept tile `kept`. They lie from the end on down, so that a stage with much of an input
  /// and few tiles may use what others have for sums.
  template <int M>
  __device__ __forceinline__ float* sums(int kept) const {
    return reinterpret_cast<float*>(decode_memory() + sums_end) - (kept + 1) * (kWarps * M * kTileRows);
  }
  /// Row m of this CTA's tile number `tile`.
  __device__ __forceinline__ float* own(int own_at, int tile, int m) const {
    return reinterpret_cast<float*>(decode_memory() + own_at + (tile * n_rows + m) * (kTileRows * 4));
  }
};

/// What lies at the beginning of shared memory.
struct FixedShared {
  DecodeContext context;
  RingBarriers barriers;
  /// The one at hand, the next two, of which the second is on its way, and the one before, where some warps are still
  /// finishing: there is no barrier at the end of a stage but those that the next one needs anyway.
  DecodeStage stages[4];
  DecodeStage fetch_stages[2];  ///< of the fetching warp: the one at hand and the next
};
static_assert(sizeof(FixedShared) <= kFixedShared && kFixedShared % 128 == 0);

__device__ __forceinline__ FixedShared& fixed_shared() { return *reinterpret_cast<FixedShared*>(decode_fixed()); }
__device__ __forceinline__ DecodeContext& decode_context() { return fixed_shared().context; }
__device__ __forceinline__ ChosenExperts& chosen_experts() {
  return *reinterpret_cast<ChosenExperts*>(decode_memory() + decode_context().choice);
}
__device__ __forceinline__ RingBarriers& decode_barriers() { return fixed_shared().barriers; }
__device__ __forceinline__ DecodeStage (&decode_stages())[4] { return fixed_shared().stages; }

/// threadIdx.x, that / 32, and gridDim.x. The compiler is not to know that they are always the same: it would keep them
/// and what follows from them over calls, in local memory, which is an L2 trip away.
__device__ __forceinline__ int this_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
__device__ __forceinline__ int this_warp() { return static_cast<int>(static_cast<unsigned>(this_thread()) / 32); }
__device__ __forceinline__ int grid_size() {
  int n;
  asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(n));
  return n;
}

// What a caller knows already goes to functions that are not inlined as an address in shared memory: through a
// reference they would read it as if it could lie anywhere.
__device__ __forceinline__ const DecodeStage& stage_at(uint32_t address) {
  return *static_cast<const DecodeStage*>(__cvta_shared_to_generic(address));
}
__device__ __forceinline__ WarpWalk& walk_at(uint32_t address) {
  return *static_cast<WarpWalk*>(__cvta_shared_to_generic(address));
}

__device__ __forceinline__ WarpWalk& this_walk() { return decode_context().walk[this_warp()]; }
__device__ __forceinline__ const DecodeStage& current_stage() { return decode_stages()[this_walk().which]; }
__device__ __forceinline__ int after_which(int which) { return (which + 1) % 4; }

}  // namespace infer::cuda
