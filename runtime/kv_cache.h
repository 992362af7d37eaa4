// Bookkeeping of the KV cache: which page of the pool belongs to which sequence, how many hold it, and which prefixes
// it remembers. Integers only: the numbers inside the pages live in the backend and are copied by the engine when
// match() asks for it. All storage is sized at construction, so nothing here allocates while tokens flow.
//
// The index is a tree: a node is a page with the tokens it holds, its parent the page of the positions before. Full
// pages are found by a keyed hash of (parent, tokens) and then compared token by token, so a collision costs time,
// never a wrong answer. Pages that no sequence holds stay in the index until their place is needed, oldest use first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace infer {

using PageId = int32_t;
inline constexpr PageId kNoPage = -1;

/// The pages of one sequence, in order of position. Owned by the sequence, changed only through the KvCache.
struct SequencePages {
  std::vector<PageId> pages;
  int64_t n_indexed = 0;   ///< leading pages that are in the index (or have a twin there)
  uint64_t last_node = 0;  ///< node of page n_indexed - 1; 0: the root
};

/// What match() found. When copy_from is a page, its first copy_tokens positions must be copied to copy_to before the
/// sequence is computed further, and before any other call of the cache.
struct PrefixMatch {
  int64_t n_tokens = 0;  ///< positions that need not be computed, the copied ones included
  PageId copy_from = kNoPage, copy_to = kNoPage;
  int64_t copy_tokens = 0;
};

class KvCache {
 public:
  /// `key` makes hashes unpredictable; `hash_mask` is for tests, which force collisions with it.
  KvCache(int64_t n_pages, uint64_t key, uint64_t hash_mask = ~uint64_t{0});

  /// Gives an empty `sequence` the longest indexed prefix of `ids`, which must exclude at least the last token of the
  /// prompt: its logits are wanted. Pages found are shared; of a page that agrees only in part the head is to be
  /// copied.
  PrefixMatch match(std::span<const int32_t> ids, SequencePages& sequence);
  /// Of the full pages that match() would find, those that sequences hold: to share them takes none of n_available().
  int64_t n_held(std::span<const int32_t> ids);
  /// Makes room for `n_positions` in all. False, and nothing changed, when there are not enough free or evictable
  /// pages.
  bool extend(SequencePages& sequence, int64_t n_positions);
  /// Puts pages that became full into the index; `ids` are the tokens whose K and V are computed.
  void index_full_pages(SequencePages& sequence, std::span<const int32_t> ids);
  /// Ends a sequence: indexes its last partial page too and lets go of all pages. Empty `ids`: nothing new is
  /// remembered.
  void release(SequencePages& sequence, std::span<const int32_t> ids);
  /// Ends a sequence whose contents must not be used again: its pages leave the index, too.
  void discard(SequencePages& sequence);
  /// Forgets every prefix; pages that sequences hold stay theirs.
  void clear();

  int64_t n_pages() const { return static_cast<int64_t>(pages_.size()); }
  int64_t n_free() const { return n_free_; }         ///< pages that hold nothing
  int64_t n_cached() const { return n_evictable_; }  ///< remembered pages that no sequence holds
  int64_t n_available() const { return n_free_ + n_evictable_; }
  int32_t ref_count(PageId page) const { return pages_[static_cast<size_t>(page)].refs; }
  /// Pages that only this sequence holds: what its end would set free.
  int64_t n_private(const SequencePages& sequence) const;

 private:
  struct Page {
    int32_t refs = 0;
    int32_t n_tokens = 0;                                ///< of the index entry; 0: not in the index
    uint64_t node = 0, parent = 0;                       ///< identities of index entries, never used twice
    PageId older = kNoPage, newer = kNoPage;             ///< list of evictable pages, or of free ones (newer)
    PageId hash_next = kNoPage, sibling_next = kNoPage;  ///< chains of the two tables below
  };

  int32_t* tokens(PageId page);
  Page& at(PageId page) { return pages_[static_cast<size_t>(page)]; }
  uint64_t hash_of(uint64_t parent, const int32_t* ids) const;
  PageId find_full(uint64_t parent, const int32_t* ids);
  PageId find_partial(uint64_t parent, std::span<const int32_t> ids, int64_t& n_common);
  void insert(PageId page, uint64_t parent, std::span<const int32_t> ids);
  void remove_from_index(PageId page);
  PageId take();
  void hold(PageId page);
  void let_go(PageId page);
  void push_free(PageId page);
  void unlink_evictable(PageId page);

  std::vector<Page> pages_;
  std::vector<int32_t> tokens_;              ///< [n_pages, kPageTokens]
  std::vector<PageId> by_hash_, by_parent_;  ///< heads of chains, power-of-two sizes; full pages in by_hash_ only,
                                             ///< all index entries in by_parent_
  PageId free_head_ = kNoPage, oldest_ = kNoPage, newest_ = kNoPage;
  int64_t n_free_ = 0, n_evictable_ = 0;
  uint64_t next_node_ = 1, key_, hash_mask_;
};

}  // namespace infer
