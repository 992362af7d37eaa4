// The oracle against numbers worked out by hand and against its own definition written another way.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/backend.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

using namespace infer;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// A cache of `pages` pages, poisoned, so that reading a cell nobody wrote shows.
struct Cache {
  std::vector<float> k, v;
  Tensor k_tensor, v_tensor;
  Cache(int64_t pages, int64_t heads, int64_t head_dim)
      : k(static_cast<size_t>(pages * heads * kPageTokens * head_dim), kNan), v(k) {
    k_tensor = view(k, {pages, heads, kPageTokens, head_dim});
    v_tensor = view(v, {pages, heads, kPageTokens, head_dim});
  }
  float& at(std::vector<float>& side, int64_t page, int64_t head, int64_t offset, int64_t i) {
    return side[static_cast<size_t>(((page * k_tensor.dims[1] + head) * kPageTokens + offset) * k_tensor.dims[3] + i)];
  }
};

/// Attention over one sequence of `length` positions in consecutive pages; the last `n` tokens are queries.
struct OneSequence {
  std::vector<int32_t> table, q_start, kv_len;
  OneSequence(int32_t length, int32_t n) : q_start{0, n}, kv_len{length} {
    for (int32_t p = 0; p * kPageTokens < length; ++p) table.push_back(p);
  }
  void bind(AttentionArgs& args) {
    args.page_table = view(table, {1, static_cast<int64_t>(table.size())});
    args.q_start = view(q_start, {2});
    args.kv_len = view(kv_len, {1});
  }
};

}  // namespace

TEST_CASE("ref norm divides by the root of the mean square and multiplies by the weight") {
  const auto ref = make_backend("ref");
  std::vector<float> x = {3, 4, 0, 0, 1, -1, 1, -1}, weight = {1, 2, 3, 4}, out(8, kNan);
  ref->norm({view(x, {2, 4}), view(weight, {4}), 0, view(out, {2, 4})});
  CHECK(out == std::vector<float>{1.2f, 3.2f, 0, 0, 1, -2, 3, -4});
  ref->norm({view(x, {2, 4}), view(weight, {4}), 0, view(x, {2, 4})});
  CHECK(x == out);
  std::vector<float> zero(4, 0);
  ref->norm({view(zero, {1, 4}), view(weight, {4}), 1e-5f, view(zero, {1, 4})});
  CHECK(zero == std::vector<float>(4, 0));
}

TEST_CASE("ref matmul multiplies with the decoded rows of every format") {
  const auto ref = make_backend("ref");
  for (DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q8_0}) {
    for (int64_t k : {32, 96}) {
      INFO(format_name(dtype) << " k = " << k);
      const int64_t m = 3, n = 5;
      const std::vector<float> w = random_floats(n * k, 1);
      std::vector<float> x = random_floats(m * k, 2), bias = random_floats(n, 3), out(15, kNan), decoded(w.size());
      std::vector<char> blocks(static_cast<size_t>(tensor_bytes(dtype, n, k)));
      REQUIRE(encode_row(dtype, w.data(), blocks.data(), n * k));
      REQUIRE(decode_row(dtype, blocks.data(), decoded.data(), n * k));
      ref->matmul({view(x, {m, k}), Tensor(blocks.data(), dtype, {n, k}), view(bias, {n}), view(out, {m, n})});
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          long double sum = bias[static_cast<size_t>(j)];
          for (int64_t l = 0; l < k; ++l) {
            sum +=
                static_cast<long double>(x[static_cast<size_t>(i * k + l)]) * decoded[static_cast<size_t>(j * k + l)];
          }
          CHECK(out[static_cast<size_t>(i * n + j)] == Approx(static_cast<double>(sum)).epsilon(1e-6).margin(1e-6));
        }
      }
    }
  }
}

TEST_CASE("ref embed looks rows up and scales them") {
  const auto ref = make_backend("ref");
  std::vector<float> table = {0, 1, 10, 11, 20, 21}, out(4, kNan);
  std::vector<int32_t> ids = {2, 0};
  ref->embed({view(table, {3, 2}), view(ids, {2}), 2, view(out, {2, 2})});
  CHECK(out == std::vector<float>{40, 42, 0, 2});
}

TEST_CASE("ref activations have their published values") {
  const auto ref = make_backend("ref");
  std::vector<float> gate = {0, 1, -1, 1e5f, -1e5f}, up = {2, 2, 2, 1, 1}, out(5, kNan);
  ref->activate({view(gate, {1, 5}), view(up, {1, 5}), Activation::silu, view(out, {1, 5})});
  CHECK(out[0] == 0);
  CHECK(out[1] == Approx(2 * 0.731058578630));
  CHECK(out[2] == Approx(-2 * 0.268941421369));
  CHECK(out[3] == 1e5f);
  CHECK(out[4] == 0);
  ref->activate({view(gate, {1, 5}), view(up, {1, 5}), Activation::gelu_tanh, view(out, {1, 5})});
  CHECK(out[1] == Approx(2 * 0.841191990607));
  CHECK(out[2] == Approx(-2 * 0.158808009392));
  CHECK(out[3] == 1e5f);
  CHECK(out[4] == 0);
}

TEST_CASE("ref add scales a branch, after its norm when there is one") {
  const auto ref = make_backend("ref");
  std::vector<float> x = {1, 1}, branch = {3, 4}, norm = {1, 10};
  ref->add({view(x, {1, 2}), view(branch, {1, 2}), {}, 0, 0.5f});
  CHECK(x == std::vector<float>{2.5f, 3});
  ref->add({view(x, {1, 2}), view(branch, {1, 2}), view(norm, {2}), 0, 1});
  const double root = std::sqrt(12.5);
  CHECK(x[0] == Approx(2.5 + 3 / root));
  CHECK(x[1] == Approx(3 + 40 / root));
}

TEST_CASE("ref scale_softcap scales first and caps with tanh") {
  const auto ref = make_backend("ref");
  std::vector<float> x = {1, -100, 3};
  ref->scale_softcap(view(x, {1, 3}), 2, 0);
  CHECK(x == std::vector<float>{2, -200, 6});
  ref->scale_softcap(view(x, {1, 3}), 0.5f, 8);
  CHECK(x[0] == Approx(8 * std::tanh(0.125)));
  CHECK(x[1] == Approx(-8));
}

TEST_CASE("ref rope_store rotates adjacent pairs or halves, leaves the rest of the head, and writes the slot") {
  const auto ref = make_backend("ref");
  const bool adjacent = GENERATE(false, true);
  std::vector<float> q = {1, 2, 3, 4, 5, 6}, k = q, v = {7, 8, 9, 10, 11, 12};
  std::vector<float> cos_sin = {1, 0, 1, 0, /* position 1: */ 0, 1, -1, 0};  // pair 0 by 90 degrees, pair 1 by 180
  std::vector<int32_t> positions = {1}, slots = {2 * kPageTokens + 5};
  Cache cache(3, 1, 6);
  RopeStoreArgs args;
  args.q = view(q, {1, 1, 6}), args.k = view(k, {1, 1, 6}), args.v = view(v, {1, 1, 6});
  args.rope = {view(cos_sin, {2, 2, 2}), adjacent};
  args.positions = view(positions, {1}), args.slots = view(slots, {1});
  args.k_cache = cache.k_tensor, args.v_cache = cache.v_tensor;
  ref->rope_store(args);
  const std::vector<float> want =
      adjacent ? std::vector<float>{-2, 1, -3, -4, 5, 6} : std::vector<float>{-3, -2, 1, -4, 5, 6};
  CHECK(q == want);
  int64_t written = 0;
  for (int64_t i = 0; i < 6; ++i) {
    CHECK(cache.at(cache.k, 2, 0, 5, i) == want[static_cast<size_t>(i)]);
    CHECK(cache.at(cache.v, 2, 0, 5, i) == v[static_cast<size_t>(i)]);
  }
  for (float x : cache.k) written += !std::isnan(x);
  CHECK(written == 6);
}

TEST_CASE("ref rope_store norms each head of q and k before the rotation") {
  const auto ref = make_backend("ref");
  std::vector<float> q = {3, 4, 30, 40}, k = {6, 8}, v = {1, 1}, q_norm = {1, 1}, k_norm = {2, 1};
  std::vector<int32_t> positions = {0}, slots = {0};
  Cache cache(1, 1, 2);
  RopeStoreArgs args;
  args.q = view(q, {1, 2, 2}), args.k = view(k, {1, 1, 2}), args.v = view(v, {1, 1, 2});
  args.q_norm = view(q_norm, {2}), args.k_norm = view(k_norm, {2});
  args.eps = 0;
  args.positions = view(positions, {1}), args.slots = view(slots, {1});
  args.k_cache = cache.k_tensor, args.v_cache = cache.v_tensor;
  ref->rope_store(args);
  const float root = std::sqrt(12.5f);
  CHECK(q[0] == Approx(3 / root));
  CHECK(q[3] == Approx(4 / root));
  CHECK(cache.k[0] == Approx(6 / root));
  CHECK(cache.k[1] == Approx(4 / root));
}

TEST_CASE("ref attention with equal scores is the mean of what the window shows") {
  const auto ref = make_backend("ref");
  const int32_t length = 70;
  Cache cache(3, 1, 1);
  for (int32_t j = 0; j < length; ++j) {
    cache.at(cache.k, j / kPageTokens, 0, j % kPageTokens, 0) = 0;
    cache.at(cache.v, j / kPageTokens, 0, j % kPageTokens, 0) = static_cast<float>(j);
  }
  std::vector<float> q = {1, 1}, out(2, kNan);
  OneSequence sequence(length, 2);
  AttentionArgs args;
  args.q = view(q, {2, 1, 1}), args.out = view(out, {2, 1, 1});
  args.k_cache = cache.k_tensor, args.v_cache = cache.v_tensor;
  sequence.bind(args);
  ref->attention(args);
  CHECK(out == std::vector<float>{34, 34.5f});
  args.window = 3;
  ref->attention(args);
  CHECK(out == std::vector<float>{67, 68});
  args.window = 1;
  ref->attention(args);
  CHECK(out == std::vector<float>{68, 69});
  std::vector<float> sinks = {0};  // one more position with score 0 and no value
  args.window = 3;
  args.sinks = view(sinks, {1});
  ref->attention(args);
  CHECK(out[1] == Approx(68 * 3 / 4.0));
}

TEST_CASE("ref attention weighs by the softmax of scaled and capped scores, each group of heads with its KV head") {
  const auto ref = make_backend("ref");
  Cache cache(1, 2, 1);
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t j = 0; j < 2; ++j) {
      cache.at(cache.k, 0, h, j, 0) = static_cast<float>(j * (h + 1));
      cache.at(cache.v, 0, h, j, 0) = static_cast<float>(10 * h + j);
    }
  }
  std::vector<float> q = {1, 2, 1, 4}, out(4, kNan);
  OneSequence sequence(2, 1);
  AttentionArgs args;
  args.q = view(q, {1, 4, 1}), args.out = view(out, {1, 4, 1});
  args.k_cache = cache.k_tensor, args.v_cache = cache.v_tensor;
  args.scale = 0.5f;
  sequence.bind(args);
  const auto share = [](double score) { return std::exp(score) / (1 + std::exp(score)); };
  ref->attention(args);
  CHECK(out[0] == Approx(share(0.5)));
  CHECK(out[1] == Approx(share(1)));
  CHECK(out[2] == Approx(10 + share(1)));
  CHECK(out[3] == Approx(10 + share(4)));
  args.softcap = 2;
  ref->attention(args);
  CHECK(out[3] == Approx(10 + share(2 * std::tanh(2.0))));
}

TEST_CASE("ref stays finite where 16-bit sums would not, and lets NaN through") {
  const auto ref = make_backend("ref");
  std::vector<float> x(64, 1e5f), w(64, 1e5f), out(1, 0);
  ref->matmul({view(x, {1, 64}), view(w, {1, 64}), {}, view(out, {1, 1})});
  CHECK(out[0] == Approx(64e10));
  x[63] = kNan;
  ref->matmul({view(x, {1, 64}), view(w, {1, 64}), {}, view(out, {1, 1})});
  CHECK(std::isnan(out[0]));
}

TEST_CASE("ref refuses ids, positions, slots and shapes that lead out of its tensors") {
  const auto ref = make_backend("ref");
  std::vector<float> table(6), out(2);
  for (int32_t id : {-1, 3, INT32_MAX}) {
    std::vector<int32_t> ids = {id};
    CHECK_THROWS_AS(ref->embed({view(table, {3, 2}), view(ids, {1}), 1, view(out, {1, 2})}), Error);
    CHECK_THROWS_AS(ref->gather(view(table, {3, 2}), view(ids, {1}), view(out, {1, 2})), Error);
  }
  CHECK_THROWS_AS(ref->matmul({view(table, {3, 2}), view(table, {2, 3}), {}, view(out, {1, 2})}), Error);
  std::vector<float> q(2), k(2), v(2), cos_sin = {1, 0};
  Cache cache(1, 1, 2);
  std::vector<int32_t> positions = {0}, slots = {0};
  RopeStoreArgs args;
  args.q = view(q, {1, 1, 2}), args.k = view(k, {1, 1, 2}), args.v = view(v, {1, 1, 2});
  args.rope.cos_sin = view(cos_sin, {1, 1, 2});
  args.positions = view(positions, {1}), args.slots = view(slots, {1});
  args.k_cache = cache.k_tensor, args.v_cache = cache.v_tensor;
  CHECK_NOTHROW(ref->rope_store(args));
  positions[0] = 1;
  CHECK_THROWS_AS(ref->rope_store(args), Error);
  positions[0] = 0;
  for (int32_t slot : {-1, static_cast<int32_t>(kPageTokens)}) {
    slots[0] = slot;
    CHECK_THROWS_AS(ref->rope_store(args), Error);
  }
}

TEST_CASE("ref refuses by name what it has no kernel for, and counts its memory") {
  const auto ref = make_backend("ref");
  Needs needs;
  needs.head_dim = 80;
  CHECK_NOTHROW(ref->prepare(needs));
  needs.k_type = DType::Q8_0;
  CHECK_THROWS_WITH(ref->prepare(needs), Catch::Contains("Q8_0") && Catch::Contains("80"));
  needs.k_type = DType::Q5_0;
  CHECK_THROWS_WITH(ref->prepare(needs), Catch::Contains("Q5_0") && Catch::Contains("q4_0"));
  needs.k_type = DType::F16;
  needs.matrix_formats = {DType::F32, DType::I8};
  CHECK_THROWS_WITH(ref->prepare(needs), Catch::Contains("I8"));
  CHECK_THROWS_WITH(make_backend("abacus"), Catch::Contains("abacus") && Catch::Contains("ref"));

  const int64_t before = ref->stats().bytes;
  Buffer buffer = ref->allocate(1000);
  CHECK(reinterpret_cast<uintptr_t>(buffer.get()) % 64 == 0);
  CHECK(ref->stats().bytes == before + 1000);
  for (int i = 0; i < 1000; ++i) REQUIRE(static_cast<char*>(buffer.get())[i] == 0);
  buffer.reset();
  CHECK(ref->stats().bytes == before);
  CHECK_THROWS_AS(ref->allocate(SIZE_MAX), Error);
}
