// Attention of the cuda backend against the oracle: both kernels (one token a sequence, and any number), all head
// sizes, cache types and options, over pages in no order.
#include <numeric>

#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

struct Sequence {
  int32_t n_new, kv_len;
};

struct AttentionCase {
  int64_t head_dim = 64, group = 1, n_kv_heads = 2;
  DType k_type = DType::F16, v_type = DType::F16;
  int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
  std::vector<Sequence> sequences;
};

/// Pages in no order; positions that were never written hold large numbers, which nobody may let into a result.
struct Pages {
  Bytes k, v;
  Ints table, q_start = {0}, kv_len;
  int64_t n_pages = 1, max_pages = 1, n_tokens = 0;

  explicit Pages(const AttentionCase& c) {
    for (const Sequence& s : c.sequences) {
      n_tokens += s.n_new;
      q_start.push_back(static_cast<int32_t>(n_tokens));
      kv_len.push_back(s.kv_len);
      const int64_t used = (s.kv_len + kPageTokens - 1) / kPageTokens;
      n_pages += used, max_pages = std::max(max_pages, used + 1);
    }
    Ints order(static_cast<size_t>(n_pages - 1));  // page 0 belongs to nobody
    std::iota(order.begin(), order.end(), 1);
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    std::vector<int32_t> written(static_cast<size_t>(n_pages), 0);
    table.assign(c.sequences.size() * static_cast<size_t>(max_pages), 0);
    size_t next = 0;
    for (size_t s = 0; s < c.sequences.size(); ++s) {
      for (int32_t left = kv_len[s], p = 0; left > 0; left -= kPageTokens, ++p) {
        const int32_t page = order[next++];
        table[s * static_cast<size_t>(max_pages) + static_cast<size_t>(p)] = page;
        written[static_cast<size_t>(page)] = std::min<int32_t>(left, kPageTokens);
      }
    }
    k = fill(c.k_type, c, written, 1), v = fill(c.v_type, c, written, 2);
  }

  Bytes fill(DType type, const AttentionCase& c, const std::vector<int32_t>& written, uint32_t seed) const {
    const int64_t rows = n_pages * c.n_kv_heads * kPageTokens;
    Floats values = random_floats(rows * c.head_dim, seed);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t page = row / kPageTokens / c.n_kv_heads;
      if (row % kPageTokens < written[static_cast<size_t>(page)]) continue;
      std::fill_n(values.begin() + row * c.head_dim, c.head_dim, 1e4f);
    }
    Bytes bytes(static_cast<size_t>(tensor_bytes(type, rows, c.head_dim)));
    REQUIRE(encode_row(type, values.data(), bytes.data(), rows * c.head_dim));
    return bytes;
  }
};

void check_attention(const AttentionCase& c) {
  const Pages pages(c);
  const int64_t n = pages.n_tokens, heads = c.group * c.n_kv_heads, n_seqs = static_cast<int64_t>(c.sequences.size());
  const Floats q = random_floats(n * heads * c.head_dim, 5, 2), sinks = random_floats(heads, 6);
  const auto of_codes = [](DType type) { return type == DType::Q8_0 || type == DType::Q4_0; };
  const bool narrow = of_codes(c.k_type) || of_codes(c.v_type);
  const std::string what = "attention " + format_name(c.k_type) + "/" + format_name(c.v_type) + " head " +
                           std::to_string(c.head_dim) + " group " + std::to_string(c.group) + " window " +
                           std::to_string(c.window) + " softcap " + std::to_string(c.softcap) + " sinks " +
                           std::to_string(c.sinks) + " tokens " + std::to_string(n) + " sequences " +
                           std::to_string(n_seqs);
  compare(narrow ? 2e-4 : 1e-4, what, [&](Backend& b) {
    Side side(b);
    Floats out = poison(n * heads * c.head_dim);
    AttentionArgs a;
    a.q = side.in(q, {n, heads, c.head_dim}), a.out = side.out(out, {n, heads, c.head_dim});
    a.k_cache = side.in(pages.k, CacheShape{c.k_type, pages.n_pages, c.n_kv_heads, c.head_dim});
    a.v_cache = side.in(pages.v, CacheShape{c.v_type, pages.n_pages, c.n_kv_heads, c.head_dim});
    a.page_table = side.in(pages.table, {n_seqs, pages.max_pages});
    a.q_start = side.in(pages.q_start, {n_seqs + 1}), a.kv_len = side.in(pages.kv_len, {n_seqs});
    a.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    a.window = c.window, a.softcap = c.softcap, a.sinks = side.maybe(c.sinks, sinks);
    b.attention(a);
    side.fetch();
    return out;
  });
}

const std::vector<Sequence> kDecoding = {{1, 1}, {1, 31}, {1, 700}, {1, 32}, {1, 33}, {1, 257}};
const std::vector<Sequence> kPrompts = {{70, 70}, {1, 33}, {37, 300}, {1, 1}, {16, 16}};

}  // namespace

TEST_CASE("cuda: attention agrees with the oracle for every head size and cache type") {
  if (skipped()) return;
  const int64_t groups[] = {1, 4, 2, 8, 3, 7, 5, 16, 6}, windows[] = {0, 40, 0, 1, 128, 0, 33};
  const float softcaps[] = {0, 20, 0, 0, 3};
  size_t at = 0;
  for (const int64_t head_dim : kHeadDims) {
    for (const DType type : kCacheTypes) {
      if (!fits(type, head_dim)) continue;
      for (int variant = 0; variant < 3; ++variant, ++at) {
        AttentionCase c;
        c.head_dim = head_dim, c.k_type = c.v_type = type;
        c.group = groups[at % std::size(groups)], c.window = windows[at % std::size(windows)];
        c.softcap = softcaps[at % std::size(softcaps)], c.sinks = at % 2 == 1;
        c.n_kv_heads = c.group > 8 ? 1 : 2;
        c.sequences = kDecoding;
        check_attention(c);
        c.sequences = kPrompts;
        check_attention(c);
      }
    }
  }
}

TEST_CASE("cuda: attention agrees with the oracle for every number of query heads to a KV head") {
  if (skipped()) return;
  for (const int64_t group : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
    for (const int64_t head_dim : {64, 128}) {
      AttentionCase c;
      c.head_dim = head_dim, c.group = group, c.n_kv_heads = 3;
      c.sequences = {{1, 600}, {1, 2}};
      check_attention(c);
      c.sequences = {{33, 70}, {1, 64}};
      check_attention(c);
    }
  }
}

TEST_CASE("cuda: attention of so many rows that a block takes 128 of them agrees with the oracle") {
  if (skipped()) return;
  AttentionCase c;
  c.group = 16, c.n_kv_heads = 4, c.window = 100;  // attention_prefill.cu: from 512 blocks of 128 rows on
  c.sequences = {{1024, 1100}};
  for (const DType type : {DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0}) {
    c.k_type = c.v_type = type;
    check_attention(c);
  }
  c.k_type = c.v_type = DType::F16;
  c.head_dim = 128, c.window = 0, c.softcap = 20, c.sinks = true;
  c.sequences = {{700, 700}, {1, 33}, {323, 400}};
  check_attention(c);
}

TEST_CASE("cuda: attention handles caches of two types, many sequences and long ones") {
  if (skipped()) return;
  AttentionCase c;
  c.k_type = DType::Q8_0, c.group = 4, c.sequences = kDecoding;
  check_attention(c);
  c.sequences = kPrompts;
  check_attention(c);
  for (const auto& [k, v] : {std::pair(DType::Q8_0, DType::Q4_0),
                             {DType::F16, DType::Q8_0},
                             {DType::F16, DType::Q4_0},
                             {DType::Q8_0, DType::F16},
                             {DType::Q4_0, DType::Q8_0},
                             {DType::BF16, DType::Q4_0}})
    for (const int64_t head_dim : {32, 64, 128, 256}) {
      c.k_type = k, c.v_type = v, c.head_dim = head_dim, c.sequences = kDecoding;
      check_attention(c);
      c.sequences = kPrompts;
      check_attention(c);
    }
  c.head_dim = 64;
  c.k_type = c.v_type = DType::F16, c.n_kv_heads = 8, c.sequences.clear();
  for (int i = 0; i < 40; ++i) c.sequences.push_back({1, 1 + i * 17 % 350});
  check_attention(c);
  c.n_kv_heads = 1, c.head_dim = 128;
  for (const int64_t window : {0, 1000}) {
    c.window = window;
    c.sequences = {{1, 4000}, {1, 2500}};
    check_attention(c);
    c.sequences = {{1, 3999}};
    check_attention(c);
    c.sequences = {{20, 2100}};
    check_attention(c);
  }
}
