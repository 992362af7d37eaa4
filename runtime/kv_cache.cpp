// Page pool, reference counts and the prefix index. See kv_cache.h for the idea; here it is lists and chains threaded
// through one array of pages.
#include "runtime/kv_cache.h"

#include <algorithm>
#include <bit>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "infer/error.h"
#include "kernels/ops.h"

namespace infer {

KvCache::KvCache(int64_t n_pages, uint64_t key, uint64_t hash_mask) : key_(key), hash_mask_(hash_mask) {
  const auto n = static_cast<size_t>(n_pages);
  pages_.resize(n);
  tokens_.resize(n * kPageTokens);
  by_hash_.assign(std::bit_ceil(n + 1), kNoPage);
  by_parent_.assign(std::bit_ceil(n + 1), kNoPage);
  // Low pages first: memory that nothing ever wrote to stays untouched as long as possible.
  for (int64_t page = n_pages - 1; page >= 0; --page) push_free(static_cast<PageId>(page));
}

PrefixMatch KvCache::match(std::span<const int32_t> ids, SequencePages& sequence) {
  PrefixMatch match;
  while (match.n_tokens + kPageTokens <= static_cast<int64_t>(ids.size())) {
    const PageId page = find_full(sequence.last_node, ids.data() + match.n_tokens);
    if (page == kNoPage) break;
    hold(page);
    sequence.pages.push_back(page);
    sequence.n_indexed += 1;
    sequence.last_node = at(page).node;
    match.n_tokens += kPageTokens;
  }
  int64_t n_common = 0;
  const PageId from = find_partial(sequence.last_node, ids.subspan(static_cast<size_t>(match.n_tokens)), n_common);
  if (from == kNoPage) return match;
  hold(from);  // or the copy's destination could be the evicted source
  if (n_available() > 0) {
    match.copy_from = from;
    match.copy_to = take();
    match.copy_tokens = n_common;
    match.n_tokens += n_common;
    sequence.pages.push_back(match.copy_to);
  }
  let_go(from);
  return match;
}

int64_t KvCache::n_held(std::span<const int32_t> ids) {
  int64_t n = 0;
  uint64_t node = 0;
  for (; ids.size() >= kPageTokens; ids = ids.subspan(kPageTokens)) {
    const PageId page = find_full(node, ids.data());
    if (page == kNoPage) break;
    if (ref_count(page) > 0) ++n;
    node = at(page).node;
  }
  return n;
}

bool KvCache::extend(SequencePages& sequence, int64_t n_positions) {
  const int64_t wanted = (n_positions + kPageTokens - 1) / kPageTokens - static_cast<int64_t>(sequence.pages.size());
  if (wanted > n_available()) return false;
  for (int64_t i = 0; i < wanted; ++i) sequence.pages.push_back(take());
  return true;
}

void KvCache::index_full_pages(SequencePages& sequence, std::span<const int32_t> ids) {
  while ((sequence.n_indexed + 1) * kPageTokens <= static_cast<int64_t>(ids.size())) {
    const int64_t first = sequence.n_indexed * kPageTokens;
    // Another sequence may have computed the same tokens meanwhile: its page stays the indexed one, and what follows
    // here hangs below it.
    PageId known = find_full(sequence.last_node, ids.data() + first);
    if (known == kNoPage) {
      known = sequence.pages[static_cast<size_t>(sequence.n_indexed)];
      insert(known, sequence.last_node, ids.subspan(static_cast<size_t>(first), kPageTokens));
    }
    sequence.last_node = at(known).node;
    sequence.n_indexed += 1;
  }
}

void KvCache::release(SequencePages& sequence, std::span<const int32_t> ids) {
  index_full_pages(sequence, ids);
  const int64_t n_whole = sequence.n_indexed * kPageTokens;
  if (static_cast<int64_t>(ids.size()) > n_whole) {
    const auto tail = ids.subspan(static_cast<size_t>(n_whole));
    int64_t n_common = 0;
    const PageId known = find_partial(sequence.last_node, tail, n_common);
    if (known == kNoPage || n_common < static_cast<int64_t>(tail.size()))
      insert(sequence.pages[static_cast<size_t>(sequence.n_indexed)], sequence.last_node, tail);
  }
  // Last pages first: a page is then never evicted before the pages that follow it and are useless without it.
  for (size_t i = sequence.pages.size(); i-- > 0;) let_go(sequence.pages[i]);
  sequence = {};
}

void KvCache::discard(SequencePages& sequence) {
  for (PageId page : sequence.pages) {
    if (at(page).n_tokens > 0) remove_from_index(page);
    let_go(page);
  }
  sequence = {};
}

void KvCache::clear() {
  for (size_t i = 0; i < pages_.size(); ++i) {
    const auto page = static_cast<PageId>(i);
    if (at(page).n_tokens == 0) continue;
    remove_from_index(page);
    if (at(page).refs == 0) {
      unlink_evictable(page);
      push_free(page);
    }
  }
}

int64_t KvCache::n_private(const SequencePages& sequence) const {
  return std::count_if(sequence.pages.begin(), sequence.pages.end(), [&](PageId page) { return ref_count(page) == 1; });
}

int32_t* KvCache::tokens(PageId page) { return tokens_.data() + static_cast<size_t>(page) * kPageTokens; }

uint64_t KvCache::hash_of(uint64_t parent, const int32_t* ids) const {
  return XXH3_64bits_withSeed(ids, kPageTokens * sizeof(int32_t), key_ ^ (parent * 0x9E3779B97F4A7C15u)) & hash_mask_;
}

PageId KvCache::find_full(uint64_t parent, const int32_t* ids) {
  PageId page = by_hash_[hash_of(parent, ids) & (by_hash_.size() - 1)];
  for (; page != kNoPage; page = at(page).hash_next)
    if (at(page).parent == parent && std::equal(ids, ids + kPageTokens, tokens(page))) return page;
  return kNoPage;
}

// The child of `parent` that shares the most leading tokens with `ids`.
PageId KvCache::find_partial(uint64_t parent, std::span<const int32_t> ids, int64_t& n_common) {
  PageId best = kNoPage;
  n_common = 0;
  PageId page = by_parent_[parent & (by_parent_.size() - 1)];
  for (; page != kNoPage; page = at(page).sibling_next) {
    if (at(page).parent != parent) continue;
    const int64_t limit = std::min<int64_t>(at(page).n_tokens, static_cast<int64_t>(ids.size()));
    const int32_t* mine = tokens(page);
    int64_t n = 0;
    while (n < limit && mine[n] == ids[static_cast<size_t>(n)]) ++n;
    if (n > n_common) {
      n_common = n;
      best = page;
    }
  }
  return best;
}

void KvCache::insert(PageId page, uint64_t parent, std::span<const int32_t> ids) {
  Page& entry = at(page);
  entry.node = next_node_++;
  entry.parent = parent;
  entry.n_tokens = static_cast<int32_t>(ids.size());
  std::copy(ids.begin(), ids.end(), tokens(page));
  PageId& siblings = by_parent_[parent & (by_parent_.size() - 1)];
  entry.sibling_next = siblings;
  siblings = page;
  if (entry.n_tokens < kPageTokens) return;
  PageId& chain = by_hash_[hash_of(parent, tokens(page)) & (by_hash_.size() - 1)];
  entry.hash_next = chain;
  chain = page;
}

void KvCache::remove_from_index(PageId page) {
  Page& entry = at(page);
  PageId* link = &by_parent_[entry.parent & (by_parent_.size() - 1)];
  while (*link != page) link = &at(*link).sibling_next;
  *link = entry.sibling_next;
  if (entry.n_tokens == kPageTokens) {
    link = &by_hash_[hash_of(entry.parent, tokens(page)) & (by_hash_.size() - 1)];
    while (*link != page) link = &at(*link).hash_next;
    *link = entry.hash_next;
  }
  entry.n_tokens = 0;
  entry.node = entry.parent = 0;
  entry.hash_next = entry.sibling_next = kNoPage;
}

// A free page, else the least recently used remembered one. Callers have checked that there is one.
PageId KvCache::take() {
  PageId page = free_head_;
  if (page != kNoPage) {
    free_head_ = at(page).newer;
    at(page).newer = kNoPage;
    --n_free_;
  } else {
    page = oldest_;
    if (page == kNoPage) throw Error(ErrorKind::run, "kv cache", "no page left");
    unlink_evictable(page);
    remove_from_index(page);
  }
  at(page).refs = 1;
  return page;
}

void KvCache::hold(PageId page) {
  if (at(page).refs++ == 0) unlink_evictable(page);
}

void KvCache::let_go(PageId page) {
  Page& entry = at(page);
  if (--entry.refs > 0) return;
  if (entry.n_tokens == 0) return push_free(page);
  entry.older = newest_;
  entry.newer = kNoPage;
  (newest_ == kNoPage ? oldest_ : at(newest_).newer) = page;
  newest_ = page;
  ++n_evictable_;
}

void KvCache::push_free(PageId page) {
  at(page).newer = free_head_;
  free_head_ = page;
  ++n_free_;
}

void KvCache::unlink_evictable(PageId page) {
  Page& entry = at(page);
  (entry.older == kNoPage ? oldest_ : at(entry.older).newer) = entry.newer;
  (entry.newer == kNoPage ? newest_ : at(entry.newer).older) = entry.older;
  entry.older = entry.newer = kNoPage;
  --n_evictable_;
}

}  // namespace infer
