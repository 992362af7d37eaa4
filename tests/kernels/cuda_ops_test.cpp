// The primitives of the cuda backend against the oracle, attention apart: products of every format, look-ups, pointwise
// work, and the write into the pages.
#include "kernels/cuda/packed.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

/// One or two rows meet 8-bit weights of fine matrices in f16: an int8 would be off by some 2e-5.
double product_bar(DType type, int64_t rows) {
  if (cuda::meets_f16(type) && rows <= 2) return 1e-6;
  return type == DType::F32 ? 1e-9 : is_plain(type) ? 1e-4 : 5e-4;
}

}  // namespace

TEST_CASE("cuda: a product of any format and number of rows is the oracle's") {
  if (skipped()) return;
  const std::pair<int64_t, int64_t> of_1[] = {{15, 7}, {1, 257}, {17, 100}, {16, 8}, {33, 1000}, {129, 264}};
  const std::pair<int64_t, int64_t> of_32[] = {{15, 32}, {17, 96}, {33, 288}, {16, 1056}, {129, 2080}};
  const std::pair<int64_t, int64_t> of_256[] = {{15, 256}, {17, 768}, {33, 2304}, {129, 1280}};
  const int64_t most = 130;
  for (const DType type : kWeightFormats) {
    const int64_t block = find_format(type)->block;
    std::vector<std::pair<int64_t, int64_t>> shapes;
    if (block == 1) shapes.assign(std::begin(of_1), std::end(of_1));
    if (block == 32) shapes.assign(std::begin(of_32), std::end(of_32));
    if (block == 256) shapes.assign(std::begin(of_256), std::end(of_256));
    for (const auto& [n, k] : shapes) {
      const Weight w(type, n, k, static_cast<uint32_t>(n * 7 + k));
      const Floats x = random_floats(most * k, 1), bias = random_floats(n, 2);
      Floats all = poison(most * n);  // rows do not know of each other: the oracle's first m are those of m rows
      Side exact(ref()), side(gpu());
      ref().matmul({exact.in(x, {most, k}), exact.weight(w), {}, exact.out(all, {most, n})});
      exact.fetch();
      const Tensor packed = side.weight(w), rows = side.in(x, {most, k}), offset = side.in(bias, {n});
      for (const int64_t m : {1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 65, 130}) {
        const bool biased = m % 2 == 1;
        Floats found = poison(m * n), wanted(all.begin(), all.begin() + m * n);
        for (size_t i = 0; biased && i < wanted.size(); ++i) wanted[i] += bias[i % static_cast<size_t>(n)];
        const Tensor part(rows.data, DType::F32, {m, k});
        gpu().matmul({part, packed, biased ? offset : Tensor(), side.out(found, {m, n})});
        side.fetch();
        const double error = nmse(found, wanted);
        INFO(format_name(type) << " m " << m << " n " << n << " k " << k << ": error " << error);
        CHECK(error <= product_bar(type, m));
      }
    }
  }
}

TEST_CASE("cuda: a product waits for weights that were packed just before it") {
  if (skipped()) return;
  const int64_t m = 140, n = 4096, k = 2304;
  const Weight small(DType::Q8_0, 256, k, 1), large(DType::Q8_0, n, k, 2);
  const Floats x = random_floats(m * k, 1);
  Floats wanted = poison(m * n), found = poison(m * n), other = poison(m * 256);
  Side exact(ref()), side(gpu());
  ref().matmul({exact.in(x, {m, k}), exact.weight(large), {}, exact.out(wanted, {m, n})});
  exact.fetch();
  const Tensor rows = side.in(x, {m, k}), out = side.out(found, {m, n}), beside = side.out(other, {m, 256});
  // Rows are unpacked by a stream of its own that nothing holds up any more.
  const Tensor packed = side.weight(small);
  for (int i = 0; i < 4; ++i) gpu().matmul({rows, packed, {}, beside});
  gpu().matmul({rows, side.weight(large), {}, out});
  side.fetch();
  CHECK(nmse(found, wanted) <= product_bar(DType::Q8_0, m));
}

TEST_CASE("cuda: products take the activations that were asked for") {
  if (skipped()) return;
  for (const char* act : {"f16", "bf16", "int8"}) {
    BackendOptions options;
    options.act = act;
    const bool int8 = options.act == "int8";
    const auto backend = make_backend("cuda", options);
    Needs needs = needs_of_these_tests();
    if (int8) {
      CHECK_THROWS_WITH(backend->prepare(needs), Catch::Contains("int8 with F32"));
      std::erase_if(needs.matrix_formats, [](DType type) { return is_plain(type) || cuda::meets_f16(type); });
    }
    backend->prepare(needs);
    CHECK(backend->describe().find(std::string("activations ") + act) != std::string::npos);
    for (const DType type : needs.matrix_formats) {
      const int64_t n = 129, k = 1280;
      const Weight w(type, n, k, 3);
      for (const int64_t m : {1, 4, 17, 70}) {
        const Floats x = random_floats(m * k, 1);
        const auto product = [&](Backend& b) {
          Side side(b);
          Floats out = poison(m * n);
          b.matmul({side.in(x, {m, k}), side.weight(w), {}, side.out(out, {m, n})});
          side.fetch();
          return out;
        };
        const double error = nmse(product(*backend), product(ref()));
        INFO(act << " with " << format_name(type) << ", m " << m << ": error " << error);
        CHECK(error <= (int8 ? 5e-4 : options.act == "f16" ? 1e-6 : 2e-5));
      }
    }
  }
}

TEST_CASE("cuda: a kernel that was described may be launched with more shared memory than it had then") {
  if (skipped()) return;
  const int64_t n = 64;
  const auto product = [&](int64_t k, bool described) {
    const Weight w(DType::BF16, n, k, static_cast<uint32_t>(k));
    const Floats x = random_floats(k, 1);
    Floats found = poison(n), other = found, wanted = found;
    Side exact(ref()), side(gpu());
    ref().matmul({exact.in(x, {1, k}), exact.weight(w), {}, exact.out(wanted, {1, n})});
    exact.fetch();
    const MatmulArgs args{side.in(x, {1, k}), side.weight(w), {}, side.out(found, {1, n})};
    if (described) {
      // The wider one comes last and leaves its ring less, so that the one before had more than is allowed now.
      const Weight wide(DType::BF16, n, 8 * k, 3);
      const MatmulArgs last{
          side.in(random_floats(8 * k, 2), {1, 8 * k}), side.weight(wide), {}, side.out(other, {1, n})};
      const std::vector<KernelUse> kernels = gpu().kernels_of([&] { gpu().matmul(args), gpu().matmul(last); });
      REQUIRE(kernels.size() == 2);
      // As much as there is room for: which has more depends on the GPU.
      if (gpu().describe().find("sm_90") != std::string::npos) CHECK(kernels[0].shared_bytes > kernels[1].shared_bytes);
      for (const KernelUse& use : kernels) CHECK(use.blocks_per_sm >= 1);
    }
    gpu().matmul(args);
    side.fetch();
    CHECK(nmse(found, wanted) <= 1e-4);
  };
  product(2048, true);
  product(8192, false);  // more than either
}

TEST_CASE("cuda: a weight too large to be unpacked at once gives every column of its product") {
  if (skipped()) return;
  const int64_t n = 66001, k = 1024, m = 150, some = 300;
  const Weight w(DType::Q4_0, n, k, 5);
  const Floats x = random_floats(m * k, 1);
  Floats all = poison(m * n);
  Side side(gpu());
  gpu().matmul({side.in(x, {m, k}), side.weight(w), {}, side.out(all, {m, n})});
  side.fetch();
  CHECK(std::count_if(all.begin(), all.end(), [](float v) { return std::isnan(v); }) == 0);
  for (const int64_t begin : {int64_t{0}, int64_t{65400}, n - some}) {
    Floats wanted = poison(m * some), found;
    Side exact(ref());
    ref().matmul({exact.in(x, {m, k}), w.rows(begin, some), {}, exact.out(wanted, {m, some})});
    exact.fetch();
    for (int64_t row = 0; row < m; ++row)
      found.insert(found.end(), all.begin() + row * n + begin, all.begin() + row * n + begin + some);
    CHECK(nmse(found, wanted) <= product_bar(DType::Q4_0, m));
  }
}

TEST_CASE("cuda: embedding rows come from any format") {
  if (skipped()) return;
  const Ints ids = {49, 0, 7, 7, 3};
  for (const DType type : kFormats) {
    for (const int64_t dim : {256, 768, 1280, 1000, 33, 7}) {
      if (row_bytes(type, dim) < 0) continue;
      const Weight table(type, 50, dim, 9);
      for (const size_t n : {1, 5}) {
        compare(1e-12, "embed " + format_name(type) + " " + std::to_string(dim), [&](Backend& b) {
          Side side(b);
          const auto rows = static_cast<int64_t>(n);
          Floats out = poison(rows * dim);
          b.embed({side.weight(table, WeightRole::embedding), side.in(Ints(ids.begin(), ids.begin() + rows), {rows}),
                   1.5f, side.out(out, {rows, dim})});
          side.fetch();
          return out;
        });
      }
    }
  }
}

TEST_CASE("cuda: primitives that touch each number once agree with the oracle") {
  if (skipped()) return;
  for (const int64_t rows : {1, 2, 33}) {
    for (const int64_t cols : {1, 7, 32, 33, 257, 1000, 4096, 14337}) {
      const std::string what = std::to_string(rows) + " x " + std::to_string(cols);
      Floats x = random_floats(rows * cols, 1, 30), y = random_floats(rows * cols, 2, 3), w = random_floats(cols, 3);
      if (rows == 33) x[static_cast<size_t>(5 * cols)] = NAN;
      for (const bool in_place : {false, true}) {
        compare(1e-11, "norm " + what, [&](Backend& b) {
          Side side(b);
          Floats out = in_place ? x : poison(rows * cols);
          const Tensor to = side.out(out, {rows, cols});
          b.norm({in_place ? to : side.in(x, {rows, cols}), side.in(w, {cols}), 1e-6f, to});
          side.fetch();
          return out;
        });
        for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
          compare(1e-11, "activate " + what, [&](Backend& b) {
            Side side(b);
            Floats out = in_place ? x : poison(rows * cols);
            const Tensor to = side.out(out, {rows, cols});
            b.activate({in_place ? to : side.in(x, {rows, cols}), side.in(y, {rows, cols}), activation, to});
            side.fetch();
            return out;
          });
        }
        compare(1e-11, "add " + what, [&](Backend& b) {
          Side side(b);
          Floats out = x;
          AddArgs a{side.out(out, {rows, cols}), side.in(y, {rows, cols}), {}, 1e-5f, 0.7f};
          if (in_place) a.norm = side.in(w, {cols});
          b.add(a);
          side.fetch();
          return out;
        });
      }
      for (const float softcap : {0.0f, 0.5f, 30.0f}) {
        compare(1e-11, "scale_softcap " + what, [&](Backend& b) {
          Side side(b);
          Floats out = x;
          b.scale_softcap(side.out(out, {rows, cols}), 0.3f, softcap);
          side.fetch();
          return out;
        });
      }
      compare(0, "gather " + what, [&](Backend& b) {
        Side side(b);
        Floats out = poison(3 * cols);
        const auto last = static_cast<int32_t>(rows - 1);
        b.gather(side.in(x, {rows, cols}), side.in(Ints{last, 0, last}, {3}), side.out(out, {3, cols}));
        side.fetch();
        return out;
      });
    }
  }
}

TEST_CASE("cuda: activations survive extreme numbers as the oracle does") {
  if (skipped()) return;
  const Floats gate = {0.0f, -0.0f, 1e-30f, -1e-30f, 20,     -20,      87,  -87,       90,   -90,   104,
                       -104, 1e5f,  -1e5f,  1e20f,   -1e20f, INFINITY, NAN, -INFINITY, 0.6f, 0.63f, -0.6f};
  const auto n = static_cast<int64_t>(gate.size());
  const Floats up(gate.size(), 1.0f);
  for (const int op : {0, 1, 2}) {
    Floats results[2] = {gate, gate};
    Backend* backends[] = {&ref(), &gpu()};
    for (int i = 0; i < 2; ++i) {
      Side side(*backends[i]);
      const Tensor x = side.out(results[i], {1, n});
      const auto activation = op == 0 ? Activation::silu : Activation::gelu_tanh;
      op == 2 ? backends[i]->scale_softcap(x, 1, 30) : backends[i]->activate({x, side.in(up, {1, n}), activation, x});
      side.fetch();
    }
    for (size_t i = 0; i < gate.size(); ++i) {
      const float want = results[0][i], got = results[1][i];
      INFO("op " << op << " of " << gate[i] << " wants " << want << " got " << got);
      CHECK(std::isnan(got) == std::isnan(want));
      if (std::isfinite(want)) CHECK(got == Approx(want).epsilon(5e-6).margin(1e-30));
      if (std::isinf(want)) CHECK(got == want);
    }
  }
}

TEST_CASE("cuda: rope_store norms, rotates and writes into the pages, and touches nothing else") {
  if (skipped()) return;
  const int64_t pages = 5, heads = 6, kv_heads = 2;
  int at = 0;
  for (const int64_t head_dim : kHeadDims) {
    for (const DType type : kCacheTypes) {
      for (const int64_t n : {1, 3, 70}) {
        if (!fits(type, head_dim)) continue;
        const int variant = at++;
        const bool adjacent = variant % 2 == 0, normed = variant % 3 != 0, rotated = variant % 5 != 0;
        const int64_t pairs = variant % 4 == 0 ? head_dim / 4 : head_dim / 2;
        const Floats table = random_floats(100 * pairs * 2, 4), q_norm = random_floats(head_dim, 5);
        const Floats k_norm = random_floats(head_dim, 6), v0 = random_floats(n * kv_heads * head_dim, 3);
        const Bytes before = random_cache(type, pages * kv_heads * kPageTokens, head_dim, 7);
        Ints positions, slots;
        for (int64_t t = 0; t < n; ++t) {
          positions.push_back(static_cast<int32_t>((t * 13 + 3) % 100));
          slots.push_back(static_cast<int32_t>((t * 7 + 40) % (pages * kPageTokens)));
        }
        compare(cache_bar(type), "rope_store " + format_name(type) + " " + std::to_string(head_dim), [&](Backend& b) {
          Side side(b);
          Floats q = random_floats(n * heads * head_dim, 1), k = random_floats(n * kv_heads * head_dim, 2);
          Bytes k_cache = before, v_cache = before;
          RopeStoreArgs r;
          r.q = side.out(q, {n, heads, head_dim}), r.k = side.in(k, {n, kv_heads, head_dim});
          r.v = side.in(v0, {n, kv_heads, head_dim});
          if (normed) r.q_norm = side.in(q_norm, {head_dim}), r.k_norm = side.in(k_norm, {head_dim});
          if (rotated) r.rope = {side.in(table, {100, pairs, 2}), adjacent};
          r.positions = side.in(positions, {n}), r.slots = side.in(slots, {n});
          r.k_cache = side.out(k_cache, CacheShape{type, pages, kv_heads, head_dim});
          r.v_cache = side.out(v_cache, CacheShape{type, pages, kv_heads, head_dim});
          b.rope_store(r);
          side.fetch();
          append(q, decoded(k_cache, type, head_dim));
          append(q, decoded(v_cache, type, head_dim));
          return q;
        });
      }
    }
  }
}

TEST_CASE("cuda: prepare refuses by name what has no kernel") {
  if (skipped()) return;
  const auto refused = [](const Needs& needs) -> std::string {
    try {
      make_backend("cuda")->prepare(needs);
    } catch (const Error& e) {
      return e.what();
    }
    return "nothing";
  };
  Needs needs;
  needs.head_dim = 64, needs.max_tokens = 8, needs.max_width = 64, needs.n_heads = 4, needs.max_seqs = 1;
  CHECK(refused(needs) == "nothing");
  needs.head_dim = 72;
  CHECK(refused(needs).find("72") != std::string::npos);
  needs.head_dim = 64, needs.v_type = DType::Q5_1;
  CHECK(refused(needs).find("Q5_1") != std::string::npos);
  needs.v_type = DType::F16, needs.matrix_formats = {DType::I32};
  CHECK(refused(needs).find("I32") != std::string::npos);
  needs.matrix_formats = {}, needs.embedding_formats = {static_cast<DType>(21)};
  CHECK(refused(needs).find("IQ3_S") != std::string::npos);
}
