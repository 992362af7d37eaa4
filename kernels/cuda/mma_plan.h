// How a product of a few tokens with quantised weights is shared out over the GPU, and which number lies where in the
// fragments of its tensor-core instructions (matmul_mma.cuh). Pure integers, the same on host and device, so that tests
// follow every weight without a GPU.
//
// A CTA holds the activations of one chunk of columns in registers and lets the tiles of its rows stream past, so
// activations cost a load for each chunk, not for each tile. Its eight warps share the columns of a chunk, and take
// turns in adding up what all have found of a tile. Sums over the chunks of a row are kept in shared memory; where rows
// alone do not keep all SMs busy, the chunks are dealt out to several CTAs as well, and the last one to finish adds up
// what all have left, in the order of the chunks. So the order of a sum is that of
// the columns and of the number of parts, and of nothing else.
#pragma once

#include <cstdint>

#include "kernels/cuda/packed.h"

namespace infer::cuda {

inline constexpr int kMmaWarps = 8, kMmaThreads = kMmaWarps * 32;
inline constexpr int kMmaTokens = 8;        ///< of one instruction
inline constexpr int kMmaMaxTiles = 4;      ///< instructions' widths that a CTA takes side by side: 32 tokens
inline constexpr int kMmaMaxSlots = 16;     ///< of the ring
inline constexpr int kMmaTokenFloats = 20;  ///< of 16 sums of a token in shared memory: free of bank conflicts

/// The four lanes that share a row of an instruction take a group of 32 columns each: a step. Steps of a warp in a
/// whole chunk:
template <class F>
inline constexpr int kMmaSteps = Packed<F>::chunk_groups / (kMmaWarps * 4);
/// Tiles whose sums may wait for the warp that adds them up while the other warps go on.
constexpr int mma_depth(int n_tiles) { return n_tiles == 1 ? 4 : 3; }
/// CTAs that share an SM: two while 32-bit registers for activations leave room.
template <class F>
constexpr int mma_ctas_per_sm(int n_tiles) {
  return kMmaSteps<F> * n_tiles * 16 <= 64 ? 2 : 1;
}

// ---- who holds what ------------------------------------------------------------------------------------------------

/// Group of the chunk whose weights (rows lane / 4 and lane / 4 + 8) and activations (token lane / 4) a lane holds.
template <class F>
INFER_HD int mma_group(int warp, int step, int lane) {
  return (warp * kMmaSteps<F> + step) * 4 + lane % 4;
}
/// Instruction `quad` (0..7) of a step multiplies these columns of the lane's group: with the names of mma() in
/// common.cuh, pair 0 is a[0], a[1] and b[0], pair 1 is a[2], a[3] and b[1]; `half` says which 16 bits. All columns of
/// a sum are equal, so each lane may bring others; they only have to be the same for weights and activations.
INFER_HD int mma_column(int quad, int pair, int half) { return 4 * quad + 2 * half + pair; }
/// Row of the tile and token of the eight whose sum a lane has in accumulator i.
INFER_HD int mma_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
INFER_HD int mma_token(int lane, int i) { return lane % 4 * 2 + i % 2; }

// ---- who does what -------------------------------------------------------------------------------------------------

/// First of n things that go to part i of n_parts; n * n_parts is below 2^32.
INFER_HD int first_of_part(int n, int i, int n_parts) {
  return static_cast<int>(static_cast<uint32_t>(n) * static_cast<uint32_t>(i) / static_cast<uint32_t>(n_parts));
}

/// A unit is a tile of 16 rows, or two: a tile of gate and the tile of up of the same rows.
struct MmaShape {
  int n_units = 0, tiles_per_unit = 1;
  int n_chunks = 0, chunk_bytes = 0;
  int n_token_tiles = 1;    ///< of a CTA: 1, 2 or 4 times 8 tokens
  int n_token_blocks = 1;   ///< of so many tokens
  int64_t token_bytes = 0;  ///< of a token's activations of one chunk
  int n_parts = 0;          ///< what MmaPlan::n_parts has to be; 0: what is quickest
};
struct MmaLimits {
  int n_ctas = 0;              ///< that run at once
  int shared_bytes = 0;        ///< of each
  int64_t partial_floats = 0;  ///< scratch for sums of parts
  int max_row_blocks = 0;      ///< times token blocks
};
struct MmaPlan {
  int n_row_blocks = 1;  ///< each a range of units
  int n_parts = 1;       ///< each a range of chunks
  int kept_units = 1;    ///< whose sums stay in shared memory while a range of chunks goes by
  int n_slots = 0, slot_bytes = 0;
  int exchange_offset = 0;  ///< of the warps' sums, f32 [mma_depth()][8 warps][tokens][kMmaTokenFloats]
  int kept_offset = 0;      ///< of the sums over chunks, f32 [kept_units * tiles_per_unit][tokens][16]
  int shared_bytes = 0;
  bool fits = true;  ///< the parts' sums into the scratch
};

/// What a CTA does: ranges of units and of chunks.
struct MmaRange {
  int begin, end;              ///< units
  int first_chunk, end_chunk;  ///< chunks
  int kept_units, shift;       ///< 1 << shift tiles to a unit

  INFER_HD MmaRange(int n_units, int tiles_per_unit, int n_chunks, const MmaPlan& plan, int row_block, int part)
      : begin(first_of_part(n_units, row_block, plan.n_row_blocks)),
        end(first_of_part(n_units, row_block + 1, plan.n_row_blocks)),
        first_chunk(first_of_part(n_chunks, part, plan.n_parts)),
        end_chunk(first_of_part(n_chunks, part + 1, plan.n_parts)),
        kept_units(plan.kept_units),
        shift(tiles_per_unit - 1) {}
  INFER_HD int n_items() const { return ((end - begin) << shift) * (end_chunk - first_chunk); }
};

/// One tile of one chunk after the other: for every kept_units units all chunks in turn, for every chunk all tiles.
/// Both the fetching and the computing side walk so.
struct MmaWalk {
  int base, chunk, tile = 0;  ///< `tile` counts from the first of unit `base`

  INFER_HD explicit MmaWalk(const MmaRange& r) : base(r.begin), chunk(r.first_chunk) {}
  INFER_HD int unit(const MmaRange& r) const { return base + (tile >> r.shift); }
  INFER_HD int tile_of_unit(const MmaRange& r) const { return tile & r.shift; }
  INFER_HD void advance(const MmaRange& r) {
    const int left = r.end - base, units = left < r.kept_units ? left : r.kept_units;
    if (++tile < units << r.shift) return;
    tile = 0;
    if (++chunk < r.end_chunk) return;
    chunk = r.first_chunk, base += r.kept_units;
  }
};

/// Floats of a tile's sums.
constexpr int mma_tile_floats(int n_token_tiles) { return n_token_tiles * kMmaTokens * kTileRows; }

/// Shares a product out. Costs are counted in bytes that an SM could have read meanwhile.
inline MmaPlan plan_mma(const MmaShape& s, const MmaLimits& limits) {
  constexpr int64_t kLoad = 10 << 10, kJoin = 24 << 10;  // a trip to the L2; leaving, counting and reading sums
  constexpr int kKeptBytes = 16 << 10;
  const int tile_floats = mma_tile_floats(s.n_token_tiles), sums_bytes = s.tiles_per_unit * tile_floats * 4;
  const int at_once = limits.n_ctas / s.n_token_blocks > 0 ? limits.n_ctas / s.n_token_blocks : 1;
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  MmaPlan plan;
  plan.kept_units = kKeptBytes / sums_bytes > 0 ? kKeptBytes / sums_bytes : 1;
  int64_t best = -1;
  const int first = s.n_parts > 0 ? s.n_parts : 1, most = s.n_chunks < at_once ? s.n_chunks : at_once;
  for (int parts = first; parts == first || (parts <= most && s.n_parts == 0); ++parts) {
    const int room = at_once / parts > 0 ? at_once / parts : 1, blocks = room < s.n_units ? room : s.n_units;
    const int64_t floats = int64_t{s.n_token_blocks} * parts * s.n_units * s.tiles_per_unit * tile_floats;
    const bool fits = floats <= limits.partial_floats && blocks * s.n_token_blocks <= limits.max_row_blocks;
    if (parts > 1 && s.n_parts == 0 && !fits) break;
    const int64_t units = up(s.n_units, blocks), chunks = up(s.n_chunks, parts);
    const int64_t loads = chunks == 1 ? 1 : chunks * up(units, plan.kept_units);
    int64_t cost = units * s.tiles_per_unit * chunks * s.chunk_bytes;
    cost += loads * (kLoad + s.token_bytes * s.n_token_tiles * kMmaTokens / 2);
    if (parts > 1) cost += kJoin + 2 * units * sums_bytes;
    if (best >= 0 && cost >= best) continue;
    best = cost, plan.n_parts = parts, plan.n_row_blocks = blocks, plan.fits = parts == 1 || fits;
  }
  const int exchange = mma_depth(s.n_token_tiles) * kMmaWarps * s.n_token_tiles * kMmaTokens * kMmaTokenFloats * 4;
  const int64_t units = up(s.n_units, plan.n_row_blocks);
  if (units < plan.kept_units) plan.kept_units = static_cast<int>(units);
  plan.slot_bytes = (s.chunk_bytes + 127) / 128 * 128;
  const int fixed = exchange + plan.kept_units * sums_bytes;
  plan.n_slots = (limits.shared_bytes - fixed) / plan.slot_bytes;
  if (plan.n_slots > kMmaMaxSlots) plan.n_slots = kMmaMaxSlots;
  plan.exchange_offset = plan.n_slots * plan.slot_bytes;
  plan.kept_offset = plan.exchange_offset + exchange;
  plan.shared_bytes = plan.exchange_offset + fixed;
  return plan;
}

/// Parts of a product whose sums do not depend on how many tokens there are: those of one CTA's width of them, the
/// widest, whose sums fit into the scratch for sure.
inline int fixed_parts(MmaShape s, const MmaLimits& limits) {
  s.n_token_tiles = kMmaMaxTiles, s.n_token_blocks = 1, s.n_parts = 0;
  return plan_mma(s, limits).n_parts;
}

}  // namespace infer::cuda
