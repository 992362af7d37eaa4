// The page pool and the prefix index: sharing, copying of partial pages, eviction order, forced hash collisions.
#include "runtime/kv_cache.h"

#include <numeric>
#include <random>

#include "kernels/ops.h"
#include "tests/catch.h"

using namespace infer;

namespace {

using Ids = std::vector<int32_t>;

Ids ids_from(int32_t first, int64_t n) {
  Ids ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::span<const int32_t> first(const Ids& ids, int64_t n) { return std::span(ids).first(static_cast<size_t>(n)); }

// Runs a sequence of these tokens from start to end and returns how many it found in the index.
int64_t run_through(KvCache& cache, const Ids& ids) {
  SequencePages sequence;
  const int64_t found = cache.match(first(ids, static_cast<int64_t>(ids.size()) - 1), sequence).n_tokens;
  REQUIRE(cache.extend(sequence, static_cast<int64_t>(ids.size())));
  cache.release(sequence, ids);
  return found;
}

}  // namespace

TEST_CASE("kv cache: a sequence takes pages as it grows and gives them back") {
  KvCache cache(4, 1);
  SequencePages sequence;
  CHECK(cache.extend(sequence, 1));
  CHECK(sequence.pages.size() == 1);
  CHECK(cache.extend(sequence, kPageTokens));
  CHECK(sequence.pages.size() == 1);
  CHECK(cache.extend(sequence, kPageTokens + 1));
  CHECK(cache.n_free() == 2);
  CHECK_FALSE(cache.extend(sequence, 5 * kPageTokens));
  CHECK(cache.n_free() == 2);
  cache.release(sequence, {});
  CHECK(sequence.pages.empty());
  CHECK(cache.n_free() == 4);
  CHECK(cache.n_cached() == 0);
}

TEST_CASE("kv cache: a chat turn finds its whole history, the partial page by copy") {
  KvCache cache(16, 1);
  const Ids turn = ids_from(0, 3 * kPageTokens + 7);
  CHECK(run_through(cache, turn) == 0);
  CHECK(cache.n_cached() == 4);

  Ids next = turn;
  for (int32_t id : {900, 901, 902}) next.push_back(id);
  SequencePages sequence;
  const PrefixMatch match = cache.match(first(next, static_cast<int64_t>(next.size()) - 1), sequence);
  CHECK(match.n_tokens == static_cast<int64_t>(turn.size()));
  CHECK(match.copy_tokens == 7);
  CHECK(match.copy_to == sequence.pages[3]);
  CHECK(match.copy_from != match.copy_to);
  CHECK(cache.ref_count(match.copy_from) == 0);
  CHECK(cache.ref_count(sequence.pages[0]) == 1);
  CHECK(cache.n_private(sequence) == 4);
}

TEST_CASE("kv cache: the same prompt again recomputes only its last token") {
  for (int64_t n : {1, 2, 31, 32, 33, 64, 65, 100}) {
    KvCache cache(16, 1);
    const Ids prompt = ids_from(5, n);
    CHECK(run_through(cache, prompt) == 0);
    CHECK(run_through(cache, prompt) == n - 1);
    CHECK(run_through(cache, prompt) == n - 1);
  }
}

TEST_CASE("kv cache: running sequences share full pages") {
  KvCache cache(16, 1);
  const Ids ids = ids_from(0, 2 * kPageTokens);
  SequencePages a, b;
  cache.match(first(ids, 2 * kPageTokens - 1), a);
  REQUIRE(cache.extend(a, 2 * kPageTokens));
  cache.index_full_pages(a, ids);
  const PrefixMatch match = cache.match(ids, b);
  CHECK(match.n_tokens == 2 * kPageTokens);
  CHECK(b.pages == a.pages);
  CHECK(cache.ref_count(a.pages[0]) == 2);
  CHECK(cache.n_private(a) == 0);
  cache.release(a, ids);
  CHECK(cache.ref_count(b.pages[0]) == 1);
  CHECK(cache.n_cached() == 0);
  cache.release(b, ids);
  CHECK(cache.n_cached() == 2);
}

TEST_CASE("kv cache: twins computed at the same time do not disturb each other") {
  KvCache cache(16, 1);
  const Ids ids = ids_from(0, 3 * kPageTokens);
  SequencePages a, b;
  for (SequencePages* s : {&a, &b}) {
    CHECK(cache.match(first(ids, kPageTokens), *s).n_tokens == 0);
    REQUIRE(cache.extend(*s, 3 * kPageTokens));
  }
  cache.index_full_pages(a, ids);
  cache.index_full_pages(b, ids);
  CHECK(a.last_node == b.last_node);
  cache.release(a, ids);
  cache.release(b, ids);
  CHECK(cache.n_cached() == 3);
  CHECK(cache.n_free() == 13);
}

TEST_CASE("kv cache: a prefix is found only below the same beginning") {
  KvCache cache(16, 1);
  Ids ids = ids_from(0, 3 * kPageTokens);
  run_through(cache, ids);
  ids[0] = 77;  // same second and third page, other first one
  SequencePages sequence;
  CHECK(cache.match(ids, sequence).n_tokens == 0);
  ids[0] = 0;
  ids[kPageTokens + 3] = 77;
  const PrefixMatch match = cache.match(ids, sequence);
  CHECK(match.n_tokens == kPageTokens + 3);
  CHECK(match.copy_tokens == 3);
}

TEST_CASE("kv cache: hash collisions never serve another prefix") {
  KvCache cache(64, 1, 0);  // every hash is 0
  for (int32_t start : {0, 1000, 2000, 3000}) CHECK(run_through(cache, ids_from(start, 3 * kPageTokens)) == 0);
  for (int32_t start : {0, 1000, 2000, 3000})
    CHECK(run_through(cache, ids_from(start, 3 * kPageTokens)) == 3 * kPageTokens - 1);
  Ids mixed = ids_from(0, kPageTokens);
  const Ids other = ids_from(1000 + kPageTokens, kPageTokens);
  mixed.insert(mixed.end(), other.begin(), other.end());
  SequencePages sequence;
  CHECK(cache.match(mixed, sequence).n_tokens == kPageTokens);
}

TEST_CASE("kv cache: the oldest use is evicted first, and ends before beginnings") {
  KvCache cache(4, 1);
  run_through(cache, ids_from(0, 2 * kPageTokens));
  run_through(cache, ids_from(1000, 2 * kPageTokens));
  CHECK(cache.n_free() == 0);
  CHECK(cache.n_cached() == 4);
  SequencePages sequence;
  REQUIRE(cache.extend(sequence, 1));
  SequencePages probe;
  CHECK(cache.match(ids_from(0, 2 * kPageTokens), probe).n_tokens == kPageTokens);  // lost its second page only
  cache.release(probe, {});
  CHECK(cache.match(ids_from(1000, 2 * kPageTokens), probe).n_tokens == 2 * kPageTokens);
}

TEST_CASE("kv cache: a copy never lands on its own source") {
  KvCache cache(1, 1);
  run_through(cache, ids_from(0, 10));
  SequencePages sequence;
  const PrefixMatch match = cache.match(ids_from(0, 5), sequence);
  CHECK(match.copy_from == kNoPage);
  CHECK(match.n_tokens == 0);
  CHECK(cache.n_available() == 1);
}

TEST_CASE("kv cache: discarded and cleared prefixes are not found again") {
  KvCache cache(8, 1);
  const Ids ids = ids_from(0, 2 * kPageTokens);
  SequencePages sequence, probe;
  cache.match(first(ids, 5), sequence);
  REQUIRE(cache.extend(sequence, 2 * kPageTokens));
  cache.index_full_pages(sequence, ids);
  cache.discard(sequence);
  CHECK(cache.n_free() == 8);
  CHECK(cache.match(ids, probe).n_tokens == 0);
  run_through(cache, ids);
  cache.clear();
  CHECK(cache.n_free() == 8);
  CHECK(cache.match(ids, probe).n_tokens == 0);
}

TEST_CASE("kv cache: a thousand random sequences leave the pool whole and find only true prefixes") {
  constexpr int64_t kPages = 24;
  for (uint64_t mask : {~uint64_t{0}, uint64_t{1}}) {
    KvCache cache(kPages, 3, mask);
    std::mt19937 random(7);
    struct Live {
      SequencePages pages;
      Ids ids;
    };
    std::vector<Live> live;
    std::vector<Ids> content(kPages, Ids(kPageTokens, -1));  // what a backend would have written
    auto write = [&](const Live& s, int64_t from) {
      for (auto i = static_cast<size_t>(from); i < s.ids.size(); ++i)
        content[static_cast<size_t>(s.pages.pages[i / kPageTokens])][i % kPageTokens] = s.ids[i];
    };
    for (int step = 0; step < 3000; ++step) {
      if (live.size() < 3 && random() % 2) {
        Live s;
        s.ids = Ids(1 + random() % 150, 0);
        for (int32_t& id : s.ids) id = static_cast<int32_t>(random() % 100 == 0);
        const PrefixMatch match = cache.match(first(s.ids, static_cast<int64_t>(s.ids.size()) - 1), s.pages);
        if (match.copy_from != kNoPage)
          std::copy_n(content[static_cast<size_t>(match.copy_from)].begin(), match.copy_tokens,
                      content[static_cast<size_t>(match.copy_to)].begin());
        for (int64_t i = 0; i < match.n_tokens; ++i)
          REQUIRE(content[static_cast<size_t>(s.pages.pages[static_cast<size_t>(i / kPageTokens)])]
                         [static_cast<size_t>(i % kPageTokens)] == s.ids[static_cast<size_t>(i)]);
        if (!cache.extend(s.pages, static_cast<int64_t>(s.ids.size()))) {
          cache.release(s.pages, first(s.ids, match.n_tokens));
          continue;
        }
        write(s, match.n_tokens);
        live.push_back(std::move(s));
      } else if (!live.empty()) {
        const size_t i = random() % live.size();
        if (random() % 8 == 0) {
          cache.discard(live[i].pages);
        } else {
          if (random() % 2) cache.index_full_pages(live[i].pages, live[i].ids);
          cache.release(live[i].pages,
                        random() % 8 ? std::span<const int32_t>(live[i].ids) : std::span<const int32_t>());
        }
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
      }
      int64_t n_held = 0;
      for (PageId page = 0; page < kPages; ++page) n_held += cache.ref_count(page) > 0;
      REQUIRE(n_held + cache.n_available() == kPages);
    }
  }
}
