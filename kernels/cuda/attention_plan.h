// How the positions of a sequence are dealt out to blocks of threads that attend over them side by side. Pure integers,
// the same on host and device, so that the launcher, every block and the tests agree without talking to each other.
// Splits are cut at multiples of 32 positions (a page of the cache), never shorter than 256, and the last one always
// holds the newest position: a kernel that has just written that position can let one block wait for it.
#pragma once

#include <cstdint>

#include "quant/host_device.h"

namespace infer::cuda {

/// Positions whose keys and values make one chunk of the persistent kernel's ring: a page, or half of one where a
/// page's keys and values of one head, `pair_bytes`, are more than most weights want of a slot.
INFER_HD constexpr int ring_chunk_keys(int64_t pair_bytes) { return pair_bytes <= 20480 ? 32 : 16; }

inline constexpr int kUnitRows = 8;    ///< query heads of one unit
inline constexpr int kSplitUnit = 32;  ///< positions; cuts lie at multiples of it
inline constexpr int kMinSplit = 256;  ///< positions; below it starting a block costs more than it saves

struct SplitPlan {
  int first = 0;     ///< first position that is seen
  int end = 0;       ///< one past the newest
  int n_splits = 1;  ///< at least 1
  int units = 0;     ///< whole units of kSplitUnit positions that are dealt out evenly

  INFER_HD int cut(int i) const {
    if (n_splits == 1) return (first + kSplitUnit - 1) / kSplitUnit * kSplitUnit + kSplitUnit * i * units;
    const int each = units / n_splits, longer = units % n_splits;
    return (first + kSplitUnit - 1) / kSplitUnit * kSplitUnit + kSplitUnit * (i * each + (i < longer ? i : longer));
  }
  /// Split i covers the positions [begin(i), end_of(i)). What lies outside whole units goes to the first and the last.
  INFER_HD int begin(int i) const { return i == 0 ? first : cut(i); }
  INFER_HD int end_of(int i) const { return i == n_splits - 1 ? end : cut(i + 1); }
};

/// For a query at the newest of `kv_len` positions that sees the last `window` of them (0: all).
INFER_HD SplitPlan plan_splits(int kv_len, int64_t window, int max_splits) {
  SplitPlan plan;
  plan.end = kv_len;
  plan.first = window > 0 && window < kv_len ? kv_len - static_cast<int>(window) : 0;
  const int units = kv_len / kSplitUnit - (plan.first + kSplitUnit - 1) / kSplitUnit;
  plan.units = units > 0 ? units : 0;
  const int most = plan.units / (kMinSplit / kSplitUnit);
  plan.n_splits = most < max_splits ? most : max_splits;
  if (plan.n_splits < 1) plan.n_splits = 1;
  return plan;
}

/// Of the new tokens [first, token] of a sequence, the last of which is at the newest of `kv_len` positions, those that
/// lie in the positions [begin, end): a range of tokens, empty where its end is not above its begin.
struct NewTokens {
  int begin, end;
};
INFER_HD constexpr NewTokens new_tokens_in(int first, int token, int kv_len, int begin, int end) {
  const int from = token - (kv_len - 1 - begin);
  return {from > first ? from : first, token + 1 - (kv_len - end)};
}

// Where the bits of a token may not depend on the others of its step, every token's positions are cut at multiples of
// kPartKeys, and its parts are joined in their order.
inline constexpr int kPartKeys = 512;

/// Parts that a token at `position` sees: [first, end).
struct PartRange {
  int first, end;
  INFER_HD PartRange(int position, int window)
      : first(window > 0 && position >= window ? (position - window + 1) / kPartKeys : 0),
        end(position / kPartKeys + 1) {}
};
/// Parts of the longest sequence that has room in so many pages.
INFER_HD constexpr int parts_of_pages(int64_t n_pages, int64_t page_tokens) {
  return static_cast<int>((n_pages * page_tokens + kPartKeys - 1) / kPartKeys);
}

/// Splits per sequence that keep `n_blocks` blocks of threads busy with `n_parts` independent parts (tokens times KV
/// heads times groups of query heads). With more parts than blocks, halves even out what sequences differ in length.
INFER_HD int splits_wanted(int64_t n_blocks, int64_t n_parts) {
  if (n_parts >= 4 * n_blocks) return 1;
  if (n_parts >= n_blocks) return 2;
  return static_cast<int>(n_blocks / (n_parts > 0 ? n_parts : 1));
}

}  // namespace infer::cuda
