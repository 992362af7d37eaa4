// What the two subword models (SentencePiece-style and byte-level BPE) share: merging the symbols of a word, best pair
// first, with a heap, so that a word of a million characters costs n log n; and remembering which tokens are what their
// own text encodes to, so that most words cost one look-up.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

namespace infer {

/// Turns text without special tokens into ids. Const calls are safe from any number of threads.
class SubwordModel {
 public:
  virtual ~SubwordModel() = default;
  /// Appends the ids of `text`. `at_start`: nothing, or a special token, stands before it.
  virtual void encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const = 0;
};

inline constexpr uint32_t kNoMerge = UINT32_MAX;

struct Merge {
  uint32_t rank = kNoMerge;  ///< lower merges earlier
  int32_t id = -1;           ///< of the token that results
};

/// A run of bytes of the word that is one token (id >= 0) or not one.
struct Symbol {
  uint32_t begin = 0, length = 0;
  int32_t prev = -1, next = -1;
  int32_t id = -1;
  Merge pair;  ///< with the next symbol
};

/// The working memory of one encode call, reused from word to word.
struct MergeScratch {
  std::vector<Symbol> symbols;
  std::vector<uint64_t> heap;  ///< rank << 32 | index of the left symbol: lowest rank first, then leftmost

  void add(uint32_t begin, uint32_t length, int32_t id) {
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({begin, length, at - 1, at + 1, id, {}});
  }
};

/// Merges until no pair is left. Symbol 0 survives; follow `next` from there until it is -1.
/// An entry of the heap is current exactly when its rank is still the rank of its left symbol's pair, because nothing
/// else decides what a merge at that place yields; outdated ones are skipped when they surface.
template <class MergeOf>
void merge_symbols(MergeScratch& scratch, const MergeOf& merge_of) {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<uint64_t>& heap = scratch.heap;
  if (symbols.empty()) return;
  symbols.back().next = -1;
  heap.clear();
  const auto key = [](const Symbol& s, size_t at) { return uint64_t{s.pair.rank} << 32 | at; };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    symbols[i].pair = merge_of(symbols[i], symbols[i + 1]);
    if (symbols[i].pair.rank != kNoMerge) heap.push_back(key(symbols[i], i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto look_again = [&](int32_t at) {
    Symbol& s = symbols[static_cast<size_t>(at)];
    s.pair = s.next < 0 ? Merge{} : merge_of(s, symbols[static_cast<size_t>(s.next)]);
    if (s.pair.rank == kNoMerge) return;
    heap.push_back(key(s, static_cast<size_t>(at)));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    const auto at = static_cast<int32_t>(top & UINT32_MAX);
    Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.pair.rank != top >> 32) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    left.id = left.pair.id;
    left.length += right.length;
    left.next = right.next;
    right.pair = {};  // it is gone: its entries in the heap no longer match
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].prev = at;
    look_again(at);
    if (left.prev >= 0) look_again(left.prev);
  }
}

/// Which tokens the merges rebuild from their own text. Asked for every word that is a token, answered by merging once.
class WholeWords {
 public:
  explicit WholeWords(size_t n_tokens) : state_(std::make_unique<std::atomic<uint8_t>[]>(n_tokens)) {}
  bool is_whole(int32_t id) const { return state_[static_cast<size_t>(id)].load(std::memory_order_relaxed) == kYes; }
  bool is_known(int32_t id) const { return state_[static_cast<size_t>(id)].load(std::memory_order_relaxed) != kAsk; }
  void set(int32_t id, bool whole) const {
    state_[static_cast<size_t>(id)].store(whole ? kYes : kNo, std::memory_order_relaxed);
  }

 private:
  enum : uint8_t { kAsk, kYes, kNo };
  std::unique_ptr<std::atomic<uint8_t>[]> state_;
};

}  // namespace infer
