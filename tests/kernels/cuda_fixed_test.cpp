// --deterministic on the GPU, op by op: a row's bits do not depend on how many rows there are, on what is in them, or
// on how a sequence was cut into steps. What is pure arithmetic of plans is tested without a GPU.
#include <numeric>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/mma_plan.h"
#include "kernels/cuda/wgmma_plan.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

/// `wgmma`: with room for its operands, so that Hopper multiplies quantised weights as it does for models; else as
/// other GPUs do, and as Hopper does where columns are no multiple of 128 or 256.
Backend& fixed_gpu(bool wgmma = true) {
  const auto make = [](int64_t max_width) {
    auto made = make_backend("cuda");
    Needs needs = needs_of_these_tests();
    needs.deterministic = true, needs.max_width = max_width;
    made->prepare(needs);
    return made.release();
  };
  static Backend* const all[] = {make(32), make(14336)};
  return *all[wgmma];
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

/// Whether `n` numbers are the same to the bit; says the first that is not.
void check_bits(const std::string& what, const float* found, const float* wanted, int64_t n) {
  int64_t off = 0, first = -1;
  for (int64_t i = 0; i < n; ++i)
    if (bits_of(found[i]) != bits_of(wanted[i])) off += 1, first = first < 0 ? i : first;
  if (off == 0) return;
  FAIL_CHECK(what << ": " << off << " of " << n << " differ, first " << first << std::hex << ": 0x"
                  << bits_of(found[first]) << ", alone 0x" << bits_of(wanted[first]) << std::dec << " (" << found[first]
                  << ", " << wanted[first] << ")");
}

/// A weight and rows of x on the device, for many products.
struct Desk {
  int64_t n, k, most;
  bool wgmma;
  Floats x;
  Weight weight;
  Backend& gpu = fixed_gpu(wgmma);
  Side side{gpu};
  Tensor w, bias;

  Desk(bool wgmma_, DType type, int64_t n_, int64_t k_, int64_t most_)
      : n(n_), k(k_), most(most_), wgmma(wgmma_), x(random_floats(most * k, 1)), weight(type, n, k, 7) {
    w = side.weight(weight);
    bias = side.in(random_floats(n, 8), {n});
  }
  Floats product(const Floats& rows, int64_t m) {
    Side mine(gpu);
    Floats out = poison(m * n);
    const Floats used(rows.begin(), rows.begin() + m * k);
    gpu.matmul({mine.in(used, {m, k}), w, bias, mine.out(out, {m, n})});
    mine.fetch();
    return out;
  }
  Floats row(int64_t number) { return product(Floats(x.begin() + number * k, x.begin() + (number + 1) * k), 1); }
  std::string name() const {
    return format_name(weight.host.dtype) + " n " + std::to_string(n) + " k " + std::to_string(k) +
           (wgmma ? "" : " without wgmma");
  }
};

/// Calls f(wgmma, format) for every format, and again for those that may go either way.
template <class Function>
void for_ways(Function&& f) {
  for (const DType type : kFormats) f(true, type);
  for (const DType type : kFormats)
    if (!is_plain(type)) f(false, type);
}

}  // namespace

TEST_CASE("cuda deterministic: the order of a sum is one for any number of tokens") {
  const cuda::MmaLimits limits{132, 226 << 10, 8 << 20, 4096};
  for (const int units : {1, 40, 64, 256, 896, 8016})
    for (const int chunks : {1, 2, 4, 7, 14})
      for (const int tiles : {1, 2}) {
        cuda::MmaShape s;
        s.n_units = units, s.tiles_per_unit = tiles, s.n_chunks = chunks, s.chunk_bytes = 18 << 10;
        s.token_bytes = 8192;
        const int parts = cuda::fixed_parts(s, limits);
        for (const int tokens : {1, 2, 4})
          for (const int blocks : {1, 2, 3, 16, 64, 200, 5000}) {
            s.n_token_tiles = tokens, s.n_token_blocks = blocks;
            INFO("units " << units << " chunks " << chunks << " token tiles " << tokens << " blocks " << blocks);
            REQUIRE(cuda::fixed_parts(s, limits) == parts);
            s.n_parts = parts;
            const cuda::MmaPlan plan = plan_mma(s, limits);
            s.n_parts = 0;
            REQUIRE(plan.n_parts == parts);
            REQUIRE(plan.n_row_blocks >= 1);
            if (blocks == 1) REQUIRE(plan.fits);  // so that halves come to an end
            if (plan.fits && parts > 1)
              REQUIRE(int64_t{blocks} * parts * units * tiles * cuda::mma_tile_floats(tokens) <= limits.partial_floats);
            // Each part's chunks, and every unit once.
            for (int part = 0; part < parts; ++part)
              for (int block = 0, next = 0; block < plan.n_row_blocks; ++block) {
                const cuda::MmaRange range(units, tiles, chunks, plan, block, part);
                REQUIRE(range.begin == next);
                next = range.end;
                REQUIRE(range.first_chunk == cuda::first_of_part(chunks, part, parts));
                if (block + 1 == plan.n_row_blocks) REQUIRE(next == units);
              }
          }
      }
}

TEST_CASE("cuda deterministic: parts of a token's positions are cut by its sequence alone") {
  for (const int window : {0, 1, 33, 512, 513, 4096})
    for (int position = 0; position < 3000; position += 7) {
      const cuda::PartRange parts(position, window);
      const int first = window > 0 ? std::max(0, position - window + 1) : 0;
      INFO("position " << position << " window " << window);
      REQUIRE(parts.first * cuda::kPartKeys <= first);
      REQUIRE((parts.first + 1) * cuda::kPartKeys > first);
      REQUIRE((parts.end - 1) * cuda::kPartKeys <= position);
      REQUIRE(parts.end * cuda::kPartKeys > position);
      REQUIRE(parts.end <= cuda::parts_of_pages(position / kPageTokens + 1, kPageTokens));
    }
}

TEST_CASE("cuda deterministic: activations have the form that prompts have, or are refused") {
  using cuda::Act;
  for (const DType type : kWeightFormats) CHECK(cuda::has_fixed_products(type, Act::automatic));
  for (const DType type : kWeightFormats) CHECK_FALSE(cuda::has_fixed_products(type, Act::int8));
  CHECK(cuda::has_fixed_products(DType::Q4_K, Act::bf16));
  CHECK(cuda::has_fixed_products(DType::BF16, Act::bf16));
  CHECK(cuda::has_fixed_products(DType::F16, Act::f16));
  for (const DType type : {DType::Q4_K, DType::BF16, DType::F32}) CHECK_FALSE(cuda::has_fixed_products(type, Act::f16));
  CHECK_FALSE(cuda::has_fixed_products(DType::F16, Act::bf16));
  CHECK(cuda::describe_activations({DType::Q4_K, DType::F16}, Act::automatic, false, true) ==
        "deterministic (slower), activations bf16/f16");
}

TEST_CASE("cuda deterministic: the order of a sum by wgmma is one for every size of an operand") {
  const cuda::WgmmaLimits h200{132, 227 << 10, {132, 64, 30, 14}}, alone{132, 227 << 10, {132, 0, 0, 0}};
  const auto check_format = [&]<class F>() {
    if constexpr (F::block > 1)
      for (const int64_t cols : {256, 2304, 4096, 5632, 14336, 28672})
        for (const int units : {1, 3, 63, 256, 384, 896, 8016})
          for (const cuda::WgmmaLimits& limits : {h200, alone}) {
            const auto shape = [&](int tokens) {
              cuda::WgmmaShape s;
              s.n_units = units, s.tokens = tokens, s.slot_columns = cuda::wgmma_slot_groups<F>(tokens) * kGroup;
              s.n_blocks = static_cast<int>(cols / s.slot_columns), s.tile_bytes = cuda::wgmma_tile_bytes<F>(tokens);
              return s;
            };
            const int parts = fixed_parts(shape(8), limits);
            for (const int tokens : {8, 16, 32, 64, 128}) {
              cuda::WgmmaShape s = shape(tokens);
              s.fixed_parts = parts;
              const cuda::WgmmaPlan plan = plan_wgmma(s, limits);
              INFO(F::name << " cols " << cols << " units " << units << " tokens " << tokens << " parts " << parts);
              REQUIRE(plan.n_slots >= 2);
              REQUIRE(plan.n_parts == parts);
              REQUIRE(plan.n_sets == 1);
              REQUIRE(int64_t{plan.blocks.first(parts)} * s.slot_columns == cols);
              for (int part = 0; part < parts; ++part)
                REQUIRE(plan.blocks.first(part) * s.slot_columns == part * (cols / parts));
            }
          }
  };
  [&]<class... F>(FormatList<F...>) { (check_format.template operator()<F>(), ...); }(GpuFormats{});
}

TEST_CASE("cuda deterministic: a product's row has the same bits for any number of rows, in every format") {
  if (skipped()) return;
  const std::pair<int64_t, int64_t> shapes[] = {{40, 14336}, {1050, 2304}, {4500, 512}, {33, 256}, {50, 176}, {21, 77}};
  for_ways([&](bool wgmma, DType type) {
    for (const auto& [n, k] : shapes) {
      const int64_t most = 70;
      if (k % 256 != 0 && !is_plain(type)) continue;
      Desk desk(wgmma, type, n, k, most);
      Floats alone;
      for (int64_t row = 0; row < most; ++row) append(alone, desk.row(row));
      for (int64_t m = 2; m <= most; ++m) {
        const Floats found = desk.product(desk.x, m);
        for (int64_t row = 0; row < m; ++row)
          check_bits(desk.name() + " rows " + std::to_string(m) + " row " + std::to_string(row),
                     &found[static_cast<size_t>(row * n)], &alone[static_cast<size_t>(row * n)], n);
      }
    }
  });
}

TEST_CASE("cuda deterministic: prompts have the bits of their tokens, whatever is in the other rows") {
  if (skipped()) return;
  const int64_t n = 300, k = 4096;
  for_ways([&](bool wgmma, DType type) {
    Desk desk(wgmma, type, n, k, 700);
    const Floats all = desk.product(desk.x, 700);
    for (const int64_t row : {0, 1, 31, 32, 127, 128, 255, 511, 512, 639, 640, 699})
      check_bits(desk.name() + " row " + std::to_string(row) + " of 700", &all[static_cast<size_t>(row * n)],
                 desk.row(row).data(), n);
    for (const int64_t m : {3, 20, 90}) {
      Floats other = random_floats(m * k, 2, 1000);
      const int64_t kept = m / 2;
      std::copy_n(desk.x.begin() + kept * k, k, other.begin() + kept * k);
      other[0] = NAN, other[static_cast<size_t>(m * k - 1)] = INFINITY;
      check_bits(desk.name() + " beside others, rows " + std::to_string(m),
                 &desk.product(other, m)[static_cast<size_t>(kept * n)], &all[static_cast<size_t>(kept * n)], n);
    }
  });
}

TEST_CASE("cuda deterministic: more rows than the sums of their parts have room for are taken in halves") {
  if (skipped()) return;
  const int64_t n = 600, k = 4096, most = 4700;
  Desk desk(false, DType::Q8_0, n, k, most);
  const Floats all = desk.product(desk.x, most);
  for (const int64_t row : {0, 2349, 2367, 2368, 2400, 4699})
    check_bits("row " + std::to_string(row) + " of 4700", &all[static_cast<size_t>(row * n)], desk.row(row).data(), n);
}

TEST_CASE("cuda deterministic: products are the oracle's") {
  if (skipped()) return;
  for_ways([&](bool wgmma, DType type) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{40, 14336}, {700, 768}, {17, 2304}})
      for (const int64_t m : {1, 9, 70, 150}) {
        const Weight w(type, n, k, 5);
        const Floats x = random_floats(m * k, 1), bias = random_floats(n, 2);
        const auto on = [&](Backend& b) {
          Side side(b);
          Floats out = poison(m * n);
          b.matmul({side.in(x, {m, k}), side.weight(w), side.in(bias, {n}), side.out(out, {m, n})});
          side.fetch();
          return out;
        };
        const double error = nmse(on(fixed_gpu(wgmma)), on(ref()));
        INFO(format_name(type) << " m " << m << " n " << n << " k " << k << " wgmma " << wgmma << ": error " << error);
        CHECK(error <= (type == DType::F32 ? 1e-10 : is_plain(type) ? 1e-4 : 5e-4));
      }
  });
}

namespace {

/// Three sequences with their keys and values in pages; steps of any of their tokens are cut out of them.
struct Story {
  int64_t head_dim, n_kv_heads = 2, group;
  DType k_type, v_type;
  int64_t window;
  float softcap;
  bool sinks;
  static constexpr int64_t kLengths[] = {1300, 600, 40}, kMaxPages = 45, kPages = 3 * kMaxPages + 1;
  Bytes k, v;
  Ints table;
  Floats q[3];  ///< [length, heads, head_dim]
  Floats sink_values;

  Story(int64_t head_dim_, int64_t group_, DType k_, DType v_, int64_t window_, float softcap_, bool sinks_)
      : head_dim(head_dim_), group(group_), k_type(k_), v_type(v_), window(window_), softcap(softcap_), sinks(sinks_) {
    k = random_cache(k_type, kPages * n_kv_heads * kPageTokens, head_dim, 1);
    v = random_cache(v_type, kPages * n_kv_heads * kPageTokens, head_dim, 2);
    table.resize(static_cast<size_t>(kPages - 1));
    std::iota(table.begin(), table.end(), 1);
    std::shuffle(table.begin(), table.end(), std::mt19937(3));
    for (size_t s = 0; s < 3; ++s) q[s] = random_floats(kLengths[s] * width(), static_cast<uint32_t>(5 + s), 2);
    sink_values = random_floats(group * n_kv_heads, 6);
  }
  int64_t width() const { return group * n_kv_heads * head_dim; }

  /// Tokens [begin, end) of a sequence, that has none after them yet.
  struct Piece {
    size_t of;
    int64_t begin, end;
  };
  Floats step(Backend& b, const std::vector<Piece>& pieces) const {
    Side side(b);
    Ints q_start = {0}, kv_len, pages;
    Floats rows;
    for (const Piece& p : pieces) {
      q_start.push_back(q_start.back() + static_cast<int32_t>(p.end - p.begin));
      kv_len.push_back(static_cast<int32_t>(p.end));
      const auto at = table.begin() + static_cast<int64_t>(p.of) * kMaxPages;
      pages.insert(pages.end(), at, at + kMaxPages);
      rows.insert(rows.end(), q[p.of].begin() + p.begin * width(), q[p.of].begin() + p.end * width());
    }
    const int64_t n = q_start.back(), n_seqs = static_cast<int64_t>(pieces.size()), heads = group * n_kv_heads;
    Floats out = poison(n * width());
    AttentionArgs a;
    a.q = side.in(rows, {n, heads, head_dim}), a.out = side.out(out, {n, heads, head_dim});
    a.k_cache = side.in(k, CacheShape{k_type, kPages, n_kv_heads, head_dim});
    a.v_cache = side.in(v, CacheShape{v_type, kPages, n_kv_heads, head_dim});
    a.page_table = side.in(pages, {n_seqs, kMaxPages});
    a.q_start = side.in(q_start, {n_seqs + 1}), a.kv_len = side.in(kv_len, {n_seqs});
    a.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    a.window = window, a.softcap = softcap, a.sinks = side.maybe(sinks, sink_values);
    b.attention(a);
    side.fetch();
    return out;
  }
  std::string name() const {
    return "attention " + format_name(k_type) + "/" + format_name(v_type) + " head " + std::to_string(head_dim) +
           " group " + std::to_string(group) + " window " + std::to_string(window);
  }
};

void check_story(const Story& s) {
  const int64_t width = s.width(), long_one = Story::kLengths[0];
  const std::vector<Story::Piece> tail = {{0, long_one - 20, long_one}};
  const double error = nmse(s.step(fixed_gpu(), tail), s.step(ref(), tail));
  INFO(s.name() << ": error " << error);
  CHECK(error <= 2e-4);
  const Floats whole = s.step(fixed_gpu(), {{0, 0, long_one}});
  const auto check_rows = [&](const char* how, const Floats& found, int64_t skipped, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      check_bits(s.name() + ", " + how + ", position " + std::to_string(row),
                 &found[static_cast<size_t>((skipped + row - begin) * width)], &whole[static_cast<size_t>(row * width)],
                 width);
  };
  for (const int64_t at : {0, 1, 31, 63, 64, 500, 511, 512, 513, 700, 1023, 1024, 1299})
    check_rows("alone", s.step(fixed_gpu(), {{0, at, at + 1}}), 0, at, at + 1);
  for (int64_t begin = 0, n = 1; begin < long_one; begin += n, n = n % 97 * 3 + 5) {
    n = std::min(n, long_one - begin);
    check_rows("in chunks", s.step(fixed_gpu(), {{0, begin, begin + n}}), 0, begin, begin + n);
  }
  for (const int64_t at : {300, 1100}) {
    check_rows("beside others", s.step(fixed_gpu(), {{1, 590, 591}, {0, at, at + 1}, {2, 39, 40}}), 1, at, at + 1);
    check_rows("beside prompts", s.step(fixed_gpu(), {{2, 3, 40}, {0, at, at + 9}, {1, 0, 333}}), 37, at, at + 9);
  }
}

}  // namespace

TEST_CASE("cuda deterministic: attention of a token has the same bits in any step, and is the oracle's") {
  if (skipped()) return;
  const int64_t windows[] = {0, 40, 700}, groups[] = {4, 1, 7, 8};
  size_t at = 0;
  for (const int64_t head_dim : kHeadDims)
    for (const DType type : kCacheTypes) {
      if (!fits(type, head_dim)) continue;
      check_story(
          Story(head_dim, groups[at % 4], type, type, windows[at % 3], at % 5 == 1 ? 20.0f : 0.0f, at % 2 == 1));
      ++at;
    }
  check_story(Story(64, 4, DType::Q8_0, DType::Q4_0, 0, 0, false));
  check_story(Story(128, 2, DType::F16, DType::BF16, 600, 0, true));
}

TEST_CASE("cuda deterministic: a norm of a row has the same bits beside any others") {
  if (skipped()) return;
  for (const int64_t cols : {64, 576, 2304, 131}) {
    const int64_t most = 70;
    const Floats x = random_floats(most * cols, 1), weight = random_floats(cols, 2);
    const auto normed = [&](int64_t first, int64_t m) {
      Side side(fixed_gpu());
      Floats out = poison(m * cols);
      const Floats rows(x.begin() + first * cols, x.begin() + (first + m) * cols);
      fixed_gpu().norm({side.in(rows, {m, cols}), side.in(weight, {cols}), 1e-5f, side.out(out, {m, cols})});
      side.fetch();
      return out;
    };
    const Floats all = normed(0, most);
    for (int64_t row = 0; row < most; ++row)
      check_bits("norm of " + std::to_string(cols) + " row " + std::to_string(row),
                 &all[static_cast<size_t>(row * cols)], normed(row, 1).data(), cols);
  }
}
