// How the wgmma kernel shares a product of up to 128 tokens out, on the host and in the kernel alike: a CTA has a range
// of tiles of 16 rows and a range of blocks of columns; CTAs with the same tiles form a cluster. Within a CTA tiles go
// to the warps of one, two or four groups side by side (more tiles take several passes over the columns), and where
// that leaves groups over they take blocks of columns in turn. Sums of groups and of CTAs are joined at the end through
// shared memory, in an order that the plan fixes.
#pragma once

#include <cstdint>

#include "kernels/cuda/mma_plan.h"
#include "kernels/cuda/operand.h"

namespace infer::cuda {

/// Groups of four warps that multiply, and four more warps that fetch.
inline constexpr int kWgmmaGroups = 4, kWgmmaTiles = 4 * kWgmmaGroups, kWgmmaThreads = 128 * (kWgmmaGroups + 1);
inline constexpr int kWgmmaMaxSlots = 20, kWgmmaMaxParts = 8;
inline constexpr int kWgmmaStatic = 1280;  ///< static shared memory of the kernel, rounded up

/// Groups of 32 columns that a slot of the ring holds of each tile: a block of scales where there is room for so much.
template <class F>
constexpr int wgmma_slot_groups(int tokens) {
  return Chunk<F>::kBlockScale > 0 && tokens <= 64 ? 8 : 4;
}
/// Bytes of a tile in a slot.
template <class F>
constexpr int wgmma_tile_bytes(int tokens) {
  return kTileRows *
         (wgmma_slot_groups<F>(tokens) * (Chunk<F>::kCodeBytes + Chunk<F>::kGroupScale) + Chunk<F>::kBlockScale);
}
/// Whether a row of `cols` columns consists of such pieces.
template <class F>
constexpr bool wgmma_takes_columns(int64_t cols) {
  return cols % (Chunk<F>::kBlockScale > 0 ? 256 : 128) == 0;
}

/// A unit is a tile, or a tile of gate and the one of up with the same rows.
struct WgmmaShape {
  int n_units = 0, tiles_per_unit = 1;
  int n_blocks = 0;    ///< slots' worth of columns in a row
  int tile_bytes = 0;  ///< of a tile in a slot
  int slot_columns = 0;
  int tokens = 8;
  int fixed_parts = 0;  ///< not 0: so many parts, and no sets, whatever that costs
  // Where activations do not come through the ring but are made once, at the start, and stay (matmul_int8):
  int kept_bytes = 0;              ///< of a slot's columns
  int made_from = 0;               ///< bytes that those are made from
  int made = 0;                    ///< numbers of them
  int issue = 350, latency = 900;  ///< cycles that a warp needs for a slot of 256 columns, and of the longest chain
};
struct WgmmaLimits {
  int n_sms = 0, shared_bytes = 0;
  int n_clusters[4] = {};  ///< of 1, 2, 4 and 8 CTAs that run at once
};
/// Range i of n things: the first `longer` have one more than `each`. No divisions in the kernel, which cost a
/// microsecond where they stand alone.
/// `step`: things that stay together.
struct WgmmaShare {
  int each = 0, longer = 0, step = 1;
  WgmmaShare() = default;
  WgmmaShare(int n, int n_parts, int together = 1)
      : each(n / together / n_parts), longer(n / together % n_parts), step(together) {}
  INFER_HD int first(int i) const { return (i * each + (i < longer ? i : longer)) * step; }
};

struct WgmmaPlan {
  int n_row_blocks = 1, n_parts = 1;  ///< ranges of units, and of blocks of columns: CTAs of a cluster
  WgmmaShare units, blocks;
  int n_sets = 1;                                 ///< of groups of warps in a CTA that take blocks in turn
  int n_slots = 0, slot_bytes = 0, x_offset = 0;  ///< x_offset: of the activations within a slot
  int join_offset = 0;   ///< of what the other CTAs of a cluster leave; other sets leave theirs at 0
  int gated_offset = 0;  ///< of the sums of up
  int kept_offset = 0;   ///< of activations that stay
  bool one_pass = true;
  int shared_bytes = 0;
};

/// Warps that fetch weights, blocks in turn, each waiting for the slots of its own blocks only. A barrier tells two
/// phases apart, so nobody may be a whole one early or late. Late cannot be: a slot waits for the warp that fills it
/// next. Nor early: what a warp filled before, for the same set, was empty `n_slots` blocks before that; with as many
/// slots as warps and sets have in common, or slots that are always the same warp's, that is the phase before the last.
INFER_HD constexpr int wgmma_weight_warps(int n_slots, int n_sets) {
  return n_slots % 3 == 0 || n_slots >= 3 * n_sets ? 3 : 2;
}

/// Tiles of a pass.
constexpr int wgmma_tiles_at_once(int n_sets) { return kWgmmaTiles / n_sets; }
constexpr int wgmma_sums_bytes(int tokens) { return kTileRows * tokens * 4; }  ///< of a tile

/// What a division costs, in cycles of an SM; -1: not possible.
inline int64_t wgmma_cost(const WgmmaShape& s, int n_row_blocks, int n_parts, int n_sets) {
  constexpr int64_t kBytesPerCycle = 20, kFmaPerCycle = 2048;   // an H200's memory for one SM; tensor cores
  constexpr int64_t kL2BytesPerCycle = 24, kMadePerCycle = 14;  // the L2's share of one SM; of activations
  constexpr int64_t kMakeActivations = 1500;                    // a trip, a barrier
  constexpr int64_t kJoinSets = 800, kJoinParts = 2500;         // barriers and trips
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t tiles = up(s.n_units, n_row_blocks) * s.tiles_per_unit, columns = up(s.n_blocks, n_parts);
  const int at_once = wgmma_tiles_at_once(n_sets);
  const int64_t passes = up(tiles, at_once), sums = wgmma_sums_bytes(s.tokens);
  if (passes > 1 && (n_parts > 1 || n_sets > 1)) return -1;  // what is joined is joined once
  if (at_once % n_parts != 0 || (s.tiles_per_unit == 2 && (at_once < 8 || at_once / 2 % n_parts != 0))) return -1;
  const int64_t x_bytes = s.kept_bytes > 0 ? 0 : int64_t{s.slot_columns} * s.tokens * 2;
  const int64_t memory = (tiles * columns * s.tile_bytes + passes * columns * x_bytes / 2) / kBytesPerCycle;
  const int64_t busy = passes > 1 ? at_once / 4 : up(tiles, 4);  // groups of warps for a block
  const int64_t issue = passes * columns * busy * s.issue * s.slot_columns / 256;
  const int64_t latency = passes * up(columns, n_sets) * s.latency * s.slot_columns / 256;
  const int64_t multiply = passes * columns * busy * 64 * s.tokens * s.slot_columns / kFmaPerCycle;
  int64_t most = memory > issue ? memory : issue;
  if (latency > most) most = latency;
  if (multiply > most) most = multiply;
  if (n_sets > 1) most += kJoinSets + tiles * sums * (n_sets - 1) / 64;
  if (s.kept_bytes > 0) most += kMakeActivations + columns * (s.made_from / kL2BytesPerCycle + s.made / kMadePerCycle);
  if (n_parts > 1) most += kJoinParts + tiles * sums / 16;
  return most;
}

/// Where what lies in shared memory; n_slots 0: there is no room.
inline void lay_out(const WgmmaShape& s, const WgmmaLimits& limits, WgmmaPlan& plan) {
  const int tiles = wgmma_tiles_at_once(plan.n_sets), sums = wgmma_sums_bytes(s.tokens);
  // Groups of four warps multiply where one of them has a tile, and read all four; int8 warps are alone.
  const int units = plan.units.first(1), most = s.kept_bytes > 0 ? units : (units + 3) / 4 * 4;
  const int held = s.tiles_per_unit == 1 && most < tiles ? most : tiles;
  plan.x_offset = (held * s.tile_bytes + 127) / 128 * 128;
  plan.slot_bytes = plan.x_offset + (s.kept_bytes > 0 ? 0 : s.slot_columns * s.tokens * 2);
  const int kept = (plan.blocks.first(1) * s.kept_bytes + 127) / 128 * 128;
  const int shared_bytes = limits.shared_bytes - kWgmmaStatic - kept;
  // In the ring, where it is not needed any more: what sets leave, what parts leave, what up leaves.
  const int gated = s.tiles_per_unit == 2 ? tiles / 2 * sums : 0;
  plan.join_offset = (plan.n_sets - 1) * tiles * sums;
  plan.gated_offset = plan.join_offset + (plan.n_parts - 1) * (tiles / plan.n_parts) * sums;
  plan.one_pass = plan.units.first(1) * s.tiles_per_unit <= tiles;
  plan.n_slots = (shared_bytes - (plan.one_pass ? 0 : gated)) / plan.slot_bytes;
  if (plan.n_slots > kWgmmaMaxSlots) plan.n_slots = kWgmmaMaxSlots;
  plan.n_slots -= plan.n_slots % plan.n_sets;  // a slot is one set's: who skips a phase takes an old one for a new
  const int ring = plan.n_slots * plan.slot_bytes, left = plan.gated_offset + gated;
  if (!plan.one_pass) plan.gated_offset = ring;
  plan.shared_bytes = plan.one_pass ? (ring > left ? ring : left) : ring + gated;
  // matmul_wgmma leaves a slot when its set has the next one.
  const int least = s.kept_bytes > 0 ? 2 : 2 * plan.n_sets;
  if (plan.n_slots < least || plan.shared_bytes > shared_bytes) plan.n_slots = 0;
  plan.kept_offset = (plan.shared_bytes + 127) / 128 * 128, plan.shared_bytes = plan.kept_offset + kept;
}

/// The cheapest division; n_slots 0: none fits.
inline WgmmaPlan plan_wgmma(const WgmmaShape& s, const WgmmaLimits& limits) {
  WgmmaPlan best;
  int64_t least = -1;
  for (int parts = 1, i = 0; i < 4; parts *= 2, ++i) {
    const int at_most = limits.n_clusters[i], blocks = at_most < s.n_units ? at_most : s.n_units;
    if (parts > s.n_blocks || blocks < 1) continue;
    if (s.fixed_parts > 0 && parts != s.fixed_parts) continue;
    for (int sets = 1; sets <= (s.fixed_parts > 0 ? 1 : kWgmmaGroups); sets *= 2) {
      const int64_t cost = wgmma_cost(s, blocks, parts, sets);
      if (cost < 0 || (least >= 0 && cost >= least)) continue;
      WgmmaPlan plan;
      plan.n_parts = parts, plan.n_row_blocks = blocks, plan.n_sets = sets;
      plan.units = WgmmaShare(s.n_units, blocks), plan.blocks = WgmmaShare(s.n_blocks, parts);
      lay_out(s, limits, plan);
      if (plan.n_slots > 0) best = plan, least = cost;
    }
  }
  return best;
}

/// Sums of all warps in the order of tokens: of each token 16 rows, and four words so that lanes meet no bank twice.
inline constexpr int kPairSumsBytes = kWgmmaTiles * 8 * (kTileRows + 4) * 4;
/// Formats that matmul_int8 leaves half a norm with. Slots of 128 columns hold half of what a CTA multiplies, and the
/// rest is late: 8 sequences of an 8B in Q8_0 2690 -> 2572 tok/s, in Q4_0 2850 -> 2659 (H200, 2026-11-28).
template <class F>
constexpr bool passes_norm() {
  return wgmma_slot_groups<F>(8) == 8;
}

/// A division without parts, with as many sets as there is work for, each CTA's tiles being pairs of neighbours: so one
/// CTA has all of a group of 32 rows. n_slots 0: none fits. For matmul_int8, whose warps are alone.
inline WgmmaPlan plan_pairs(const WgmmaShape& s, const WgmmaLimits& limits) {
  WgmmaPlan plan;
  const int n_pairs = s.n_units / 2, blocks = limits.n_clusters[0] < n_pairs ? limits.n_clusters[0] : n_pairs;
  if (s.n_units % 2 != 0 || blocks < 1 || s.tiles_per_unit != 1) return plan;
  plan.n_row_blocks = blocks;
  plan.units = WgmmaShare(s.n_units, blocks, 2), plan.blocks = WgmmaShare(s.n_blocks, 1);
  for (plan.n_sets = kWgmmaTiles / 2; plan.n_sets > 0; plan.n_sets /= 2) {
    if (plan.n_sets > s.n_blocks || wgmma_tiles_at_once(plan.n_sets) < plan.units.first(1)) continue;
    lay_out(s, limits, plan);
    if (plan.n_slots > 0 && plan.kept_offset >= kPairSumsBytes) return plan;
  }
  return {};
}

/// Plans of two products that run side by side, each on its share of the clusters, which are of one size. n_slots 0: no
/// room.
inline void plan_wgmma_pair(const WgmmaShape& a, const WgmmaShape& b, const WgmmaLimits& limits, WgmmaPlan& of_a,
                            WgmmaPlan& of_b) {
  const auto bytes = [](const WgmmaShape& s) {
    return static_cast<double>(s.n_units) * s.n_blocks * s.tile_bytes * s.tiles_per_unit;
  };
  const auto cost = [](const WgmmaShape& s, const WgmmaPlan& plan) {
    return wgmma_cost(s, plan.n_row_blocks, plan.n_parts, plan.n_sets);
  };
  int64_t least = -1;
  of_a = of_b = {};
  for (int i = 0; i < 4; ++i) {
    const int n = limits.n_clusters[i], share = static_cast<int>(n * bytes(a) / (bytes(a) + bytes(b)));
    for (int first = share > 2 ? share - 1 : 1; first <= share + 2 && first < n; ++first) {
      WgmmaLimits some = limits;
      for (int& none : some.n_clusters) none = 0;
      some.n_clusters[i] = first;
      const WgmmaPlan plan_a = plan_wgmma(a, some);
      some.n_clusters[i] = n - first;
      const WgmmaPlan plan_b = plan_wgmma(b, some);
      if (plan_a.n_slots == 0 || plan_b.n_slots == 0) continue;
      const int64_t longer = cost(a, plan_a) > cost(b, plan_b) ? cost(a, plan_a) : cost(b, plan_b);
      if (least < 0 || longer < least) least = longer, of_a = plan_a, of_b = plan_b;
    }
  }
}

/// Parts with which a row's sum has one order for any number of tokens, those that are quickest for 8 of them, whose
/// shape this is. Without sets a part's columns come one after the other, however many a slot holds; parts end at the
/// same columns in slots of half the width.
inline int fixed_parts(const WgmmaShape& s, const WgmmaLimits& limits) {
  int best = 1;
  int64_t least = -1;
  for (int parts = 1, i = 0; i < 4; parts *= 2, ++i) {
    const int at_most = limits.n_clusters[i], blocks = at_most < s.n_units ? at_most : s.n_units;
    if (blocks < 1 || s.n_blocks % parts != 0) continue;
    const int64_t cost = wgmma_cost(s, blocks, parts, 1);
    if (cost >= 0 && (least < 0 || cost < least)) best = parts, least = cost;
  }
  return best;
}

}  // namespace infer::cuda
