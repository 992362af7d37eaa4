// The CPU's attention against the oracle and against itself: every instruction set, cache type, window, cap and cut.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/ref/ref.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/sanitized.h"

using namespace infer;
using cpu::Isa;

namespace {

struct Shape {
  int64_t n_heads = 4, n_kv_heads = 2, head_dim = 64;
  DType k_type = DType::F16, v_type = DType::F16;
  int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
};

struct Sequence {
  int64_t kv_len, n_tokens;
};

/// A cache of scattered pages, filled up to each sequence's length and poisoned with NaN everywhere else.
struct Case {
  Shape shape;
  std::vector<Sequence> seqs;
  int64_t max_pages = 0;
  std::vector<float> q, out, sinks;
  std::vector<char> k, v;
  std::vector<int32_t> table, q_start, kv_len;
  AttentionArgs args;

  Case(const Shape& s, std::vector<Sequence> sequences, unsigned seed) : shape(s), seqs(std::move(sequences)) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    int64_t n_tokens = 0, n_pages = 1;
    q_start.push_back(0);
    for (const Sequence& seq : seqs) {
      n_tokens += seq.n_tokens;
      const int64_t pages = (seq.kv_len + kPageTokens - 1) / kPageTokens;
      n_pages += pages;
      max_pages = std::max(max_pages, pages + 1);
      q_start.push_back(static_cast<int32_t>(n_tokens));
      kv_len.push_back(static_cast<int32_t>(seq.kv_len));
    }
    std::vector<int32_t> order(static_cast<size_t>(n_pages));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), rng);
    table.assign(seqs.size() * static_cast<size_t>(max_pages), std::numeric_limits<int32_t>::max());
    size_t next = 0;
    for (size_t i = 0; i < seqs.size(); ++i) {
      for (int64_t p = 0; p * kPageTokens < seqs[i].kv_len; ++p) {
        table[i * static_cast<size_t>(max_pages) + static_cast<size_t>(p)] = order[next++];
      }
    }
    k.assign(static_cast<size_t>(n_pages * s.n_kv_heads * kPageTokens * row_bytes(s.k_type, s.head_dim)), '\xff');
    v.assign(static_cast<size_t>(n_pages * s.n_kv_heads * kPageTokens * row_bytes(s.v_type, s.head_dim)), '\xff');
    std::vector<float> row(static_cast<size_t>(s.head_dim));
    for (size_t i = 0; i < seqs.size(); ++i) {
      for (int64_t j = 0; j < seqs[i].kv_len; ++j) {
        for (int64_t h = 0; h < s.n_kv_heads; ++h) {
          for (float& x : row) x = normal(rng);
          encode_row(s.k_type, row.data(), k_row(i, j, h), s.head_dim);
          for (float& x : row) x = normal(rng);
          encode_row(s.v_type, row.data(), v_row(i, j, h), s.head_dim);
        }
      }
    }
    q.resize(static_cast<size_t>(n_tokens * s.n_heads * s.head_dim));
    for (float& x : q) x = normal(rng);
    out.assign(q.size(), NAN);
    sinks.resize(static_cast<size_t>(s.n_heads));
    for (float& x : sinks) x = normal(rng);
    args.q = Tensor(q.data(), DType::F32, {n_tokens, s.n_heads, s.head_dim});
    args.out = Tensor(out.data(), DType::F32, {n_tokens, s.n_heads, s.head_dim});
    args.k_cache = Tensor(k.data(), s.k_type, {n_pages, s.n_kv_heads, kPageTokens, s.head_dim});
    args.v_cache = Tensor(v.data(), s.v_type, {n_pages, s.n_kv_heads, kPageTokens, s.head_dim});
    const auto n_seqs = static_cast<int64_t>(seqs.size());
    args.page_table = Tensor(table.data(), DType::I32, {n_seqs, max_pages});
    args.q_start = Tensor(q_start.data(), DType::I32, {n_seqs + 1});
    args.kv_len = Tensor(kv_len.data(), DType::I32, {n_seqs});
    args.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    args.window = s.window;
    args.softcap = s.softcap;
    if (s.sinks) args.sinks = Tensor(sinks.data(), DType::F32, {s.n_heads});
  }

  char* cache_row(std::vector<char>& cache, DType type, size_t seq, int64_t position, int64_t head) {
    const int64_t page = table[seq * static_cast<size_t>(max_pages) + static_cast<size_t>(position / kPageTokens)];
    const int64_t row = (page * shape.n_kv_heads + head) * kPageTokens + position % kPageTokens;
    return cache.data() + row * row_bytes(type, shape.head_dim);
  }
  char* k_row(size_t seq, int64_t position, int64_t head) { return cache_row(k, shape.k_type, seq, position, head); }
  char* v_row(size_t seq, int64_t position, int64_t head) { return cache_row(v, shape.v_type, seq, position, head); }

  std::vector<float> expected() {
    std::fill(out.begin(), out.end(), NAN);
    ref::attention(args);
    return out;
  }

  /// `n_threads` only decides how the plan cuts; here one thread runs the units, from the last to the first.
  std::vector<float> run(Isa isa, int n_threads = 1) {
    std::fill(out.begin(), out.end(), NAN);
    const int64_t room = int64_t{1} << 20;
    std::vector<float> partials(static_cast<size_t>(n_threads > 1 ? room : 0), NAN);
    std::vector<float> space(static_cast<size_t>(cpu::attention_scratch_floats(shape.head_dim)) + 16, NAN);
    float* scratch = space.data();
    while (reinterpret_cast<uintptr_t>(scratch) % 64 != 0) ++scratch;
    cpu::AttentionPlan plan(cpu::attention_table(isa));
    plan.reserve(static_cast<int64_t>(seqs.size()), static_cast<int64_t>(partials.size()));
    plan.build(args, n_threads, partials.data());
    for (int64_t u = plan.n_units(); u-- > 0;) plan.run_unit(u, scratch);
    for (int64_t m = plan.n_merges(); m-- > 0;) plan.run_merge(m);
    n_merges = plan.n_merges();
    return out;
  }
  int64_t n_merges = 0;
};

double nmse(const std::vector<float>& found, const std::vector<float>& wanted) {
  REQUIRE(found.size() == wanted.size());
  double error = 0, power = 0;
  int64_t misplaced = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    misplaced += std::isfinite(found[i]) != std::isfinite(wanted[i]);
    if (!std::isfinite(wanted[i])) continue;
    error += (static_cast<double>(found[i]) - wanted[i]) * (static_cast<double>(found[i]) - wanted[i]);
    power += static_cast<double>(wanted[i]) * wanted[i];
  }
  REQUIRE(misplaced == 0);
  return power > 0 ? error / power : error;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<Isa> available() {
  std::vector<Isa> list;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (cpu::isa_available(isa)) list.push_back(isa);
  }
  return list;
}

}  // namespace

TEST_CASE("attention agrees with the oracle for every group size, head size and instruction set") {
  unsigned seed = 1, at = 0;
  for (int64_t head_dim : {2, 8, 16, 24, 64, 80, 96, 128, 256}) {
    for (int64_t group : {1, 2, 3, 4, 5, 7, 8, 16}) {
      if (head_dim > 100 && group > 4) continue;
      if (test::kSanitized && ++at % 3 != 0) continue;
      Shape shape;
      shape.head_dim = head_dim;
      shape.n_kv_heads = group > 4 ? 1 : 2;
      shape.n_heads = shape.n_kv_heads * group;
      Case c(shape, {{1, 1}, {33, 1}, {31, 31}, {70, 40}, {97, 2}}, seed++);
      const auto wanted = c.expected();
      for (Isa isa : available()) {
        INFO("head_dim " << head_dim << " group " << group << " " << cpu::to_string(isa));
        CHECK(nmse(c.run(isa), wanted) < 1e-11);
      }
    }
  }
}

TEST_CASE("attention reads every cache type") {
  for (DType type : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0}) {
    Shape shape;
    shape.k_type = type;
    shape.v_type = type == DType::F32 ? DType::Q8_0 : type;
    Case c(shape, {{50, 50}, {64, 1}}, 5);
    const auto wanted = c.expected();
    for (Isa isa : available()) CHECK(nmse(c.run(isa), wanted) < 1e-11);
  }
}

TEST_CASE("attention knows windows, caps and sinks") {
  int at = 0;
  for (int64_t window : {0, 1, 2, 31, 32, 33, 100, 1000}) {
    for (int variant = 0; variant < 4; ++variant) {
      if (test::kSanitized && ++at % 3 != 0) continue;
      Shape shape;
      shape.n_heads = variant % 2 ? 6 : 2;
      shape.window = window;
      shape.softcap = variant & 1 ? 3.0f : 0.0f;
      shape.sinks = variant & 2;
      Case c(shape, {{1, 1}, {130, 130}, {200, 1}, {230, 7}}, static_cast<unsigned>(window + variant));
      const auto wanted = c.expected();
      for (Isa isa : available()) {
        INFO("window " << window << " variant " << variant << " " << cpu::to_string(isa));
        CHECK(nmse(c.run(isa), wanted) < 1e-11);
      }
    }
  }
}

TEST_CASE("a long past is cut among threads without changing a bit") {
  for (int64_t window : {0, 700}) {
    for (bool sinks : {false, true}) {
      Shape shape;
      shape.head_dim = 32;
      shape.n_kv_heads = 1;
      shape.n_heads = 3;
      shape.window = window;
      shape.sinks = sinks;
      shape.v_type = sinks ? DType::Q4_0 : DType::F16;  // whose values are turned back after the cut
      Case c(shape, {{1700, 1}, {255, 1}, {256, 1}, {0, 0}, {257, 1}, {2048, 3}}, 9);
      const auto wanted = c.expected();
      for (Isa isa : available()) {
        const auto whole = c.run(isa, 1);
        CHECK(c.n_merges == 0);
        CHECK(nmse(whole, wanted) < 1e-11);
        const auto split = c.run(isa, 64);
        CHECK(c.n_merges > 0);
        CHECK(same_bits(split, whole));
      }
    }
  }
}

TEST_CASE("a prompt in pieces, at once and token by token gives the same bits") {
  for (int64_t n_heads : {1, 3, 4, 16}) {
    Shape shape;
    shape.n_kv_heads = 1;
    shape.n_heads = n_heads;
    shape.head_dim = n_heads == 16 ? 96 : 40;
    if (n_heads == 16) shape.k_type = shape.v_type = DType::Q4_0;
    shape.window = n_heads == 4 ? 50 : 0;
    shape.softcap = n_heads == 3 ? 5.0f : 0.0f;
    const int64_t length = n_heads == 16 || test::kSanitized ? 300 : 600;  // a unit of a cut has 256 keys
    Case whole(shape, {{length, length}}, 3);
    for (Isa isa : available()) {
      const auto wanted = whole.run(isa);
      for (int64_t piece : {1, 5, 17, 64, 511}) {
        for (int64_t at = 0; at < length; at += piece) {
          if (at / piece % (piece < 64 ? 23 : 4) != 0) continue;
          const int64_t n = std::min(piece, length - at), row = shape.n_heads * shape.head_dim;
          Case part = whole;
          part.q.assign(whole.q.begin() + at * row, whole.q.begin() + (at + n) * row);
          part.out.assign(part.q.size(), NAN);
          part.q_start = {0, static_cast<int32_t>(n)};
          part.kv_len = {static_cast<int32_t>(at + n)};
          part.args.q = Tensor(part.q.data(), DType::F32, {n, shape.n_heads, shape.head_dim});
          part.args.out = Tensor(part.out.data(), DType::F32, {n, shape.n_heads, shape.head_dim});
          part.args.q_start.data = part.q_start.data();
          part.args.kv_len.data = part.kv_len.data();
          const std::vector<float> slice(wanted.begin() + at * row, wanted.begin() + (at + n) * row);
          INFO("heads " << n_heads << " piece " << piece << " at " << at << " " << cpu::to_string(isa));
          REQUIRE(same_bits(part.run(isa, piece % 2 ? 8 : 1), slice));
        }
      }
    }
  }
}

TEST_CASE("a NaN in the cache reaches the queries that see it and no others") {
  for (int64_t n_heads : {1, 3}) {
    for (bool in_values : {false, true}) {
      Shape shape;
      shape.n_kv_heads = 1;
      shape.n_heads = n_heads;
      shape.head_dim = 32;
      shape.window = 40;
      for (int64_t n_tokens : {3, 100}) {
        Case c(shape, {{100, n_tokens}, {20, 5}}, 4);
        std::vector<float> row(32, 1.0f);
        row[3] = in_values ? INFINITY : NAN;
        const int64_t bad = n_tokens == 3 ? 98 : 50;
        encode_row(DType::F16, row.data(), in_values ? c.v_row(0, bad, 0) : c.k_row(0, bad, 0), 32);
        const auto wanted = c.expected();
        for (Isa isa : available()) {
          INFO("heads " << n_heads << " values " << in_values << " tokens " << n_tokens << " " << cpu::to_string(isa));
          CHECK(nmse(c.run(isa), wanted) < 1e-11);
        }
      }
    }
  }
}

TEST_CASE("large scores stay finite") {
  Shape shape;
  Case c(shape, {{40, 40}}, 8);
  for (float& x : c.q) x *= 1e5f;
  const auto wanted = c.expected();
  for (Isa isa : available()) CHECK(nmse(c.run(isa), wanted) < 1e-6);
}

TEST_CASE("cache types and head sizes without a kernel are named as such") {
  CHECK(cpu::attention_supports(DType::F16, 64));
  CHECK(cpu::attention_supports(DType::Q8_0, 96));
  CHECK_FALSE(cpu::attention_supports(DType::Q8_0, 80));
  CHECK(cpu::attention_supports(DType::Q4_0, 64));
  CHECK_FALSE(cpu::attention_supports(DType::Q4_0, 80));
  CHECK_FALSE(cpu::attention_supports(DType::Q5_0, 64));
  CHECK_FALSE(cpu::attention_supports(DType::F16, 63));
  CHECK_FALSE(cpu::attention_supports(DType::F16, 2048));
}
