// The stage of experts: the choice against its definition, the stage on ref written out in double, the cpu against ref
// and against its own primitives (bit for bit), and many tokens against one at a time (bit for bit).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/route.h"
#include "quant/encode.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/kernels/cpu_side.h"
#include "tests/kernels/views.h"

using namespace infer;
using cpu::Isa;

namespace {

using Floats = std::vector<float>;

struct Choice {
  std::vector<int32_t> ids;
  Floats weights;
};

Choice route(const Floats& logits, int64_t n_active, bool sum_to_one, float scale = 1) {
  Choice c{std::vector<int32_t>(static_cast<size_t>(n_active), -1), Floats(static_cast<size_t>(n_active))};
  route_token(logits.data(), static_cast<int64_t>(logits.size()), n_active, sum_to_one, scale, c.ids.data(),
              c.weights.data());
  return c;
}

struct Shape {
  int64_t dim = 64, n_experts = 5, n_active = 2, expert_dim = 32, shared_dim = 0;
  DType router = DType::F32, gate = DType::F32, up = DType::F32, down = DType::F32, shared = DType::F32;
  bool biases = false, mix = false, post_norm = false, sum_to_one = true;
  Activation activation = Activation::silu;
  float scale = 1;
};

/// A stack of matrices (or one) in a format's blocks, and packed for a backend.
struct Weight {
  std::vector<char> bytes;
  Tensor host;
  Buffer buffer;

  Weight(DType type, std::initializer_list<int64_t> shape, uint32_t seed) {
    host = Tensor(nullptr, type, shape);
    const int64_t rows = host.n_elements() / host.cols();
    bytes = encoded_once(type, rows, host.cols(), seed, [&] {
      const Floats values = random_floats(host.n_elements(), seed, 0.2f);
      std::vector<char> made(static_cast<size_t>(tensor_bytes(type, rows, host.cols())));
      REQUIRE(encode_weights(type, values.data(), nullptr, made.data(), host.n_elements()).fault == Encoded::none);
      return made;
    });
    host.data = bytes.data();
  }
  Floats values() const {
    Floats out(static_cast<size_t>(host.n_elements()));
    decode_row(host.dtype, bytes.data(), out.data(), host.n_elements());
    return out;
  }
  Tensor on(Backend& backend, WeightRole role = WeightRole::matrix) {
    const size_t n = backend.packed_bytes(host, role);
    buffer = n > 0 ? backend.allocate(n) : nullptr;
    return backend.pack(host, role, buffer.get());
  }
};

enum class Way { fused, composed };

/// One layer's weights and the rows of n tokens.
struct Layer {
  Shape s;
  int64_t n;
  Weight router, gate, up, down;
  std::vector<Weight> shared;
  Floats norm, post, b_router, b_gate, b_up, b_down, mix, x;
  std::vector<int32_t> ids;  ///< what the last run chose
  WeightRole role = WeightRole::matrix;

  Layer(const Shape& shape, int64_t n_tokens)
      : s(shape),
        n(n_tokens),
        router(s.router, {s.n_experts, s.dim}, 1),
        gate(s.gate, {s.n_experts, s.expert_dim, s.dim}, 2),
        up(s.up, {s.n_experts, s.expert_dim, s.dim}, 3),
        down(s.down, {s.n_experts, s.dim, s.expert_dim}, 4) {
    if (s.shared_dim > 0) {
      shared.emplace_back(s.shared, std::initializer_list<int64_t>{s.shared_dim, s.dim}, 5);
      shared.emplace_back(s.shared, std::initializer_list<int64_t>{s.shared_dim, s.dim}, 6);
      shared.emplace_back(s.shared, std::initializer_list<int64_t>{s.dim, s.shared_dim}, 7);
    }
    norm = random_floats(s.dim, 10), post = random_floats(s.dim, 11), mix = random_floats(s.dim, 12, 0.3f);
    b_router = random_floats(s.n_experts, 13), b_gate = random_floats(s.n_experts * s.expert_dim, 14);
    b_up = random_floats(s.n_experts * s.expert_dim, 15), b_down = random_floats(s.n_experts * s.dim, 16);
    x = random_floats(n * s.dim, 17);
  }

  /// The residual stream after the stage.
  Floats run(Backend& backend, Way way = Way::fused) {
    Floats out = x;
    const auto room = [&](int64_t count) {
      scratch_.emplace_back(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN());
      return scratch_.back().data();
    };
    scratch_.clear(), scratch_.reserve(16);
    MoeFfnArgs a;
    a.norm = view(norm, {s.dim}), a.activation = s.activation;
    a.sum_to_one = s.sum_to_one, a.weight_scale = s.scale;
    a.w_router = router.on(backend, role), a.w_gate = gate.on(backend, role);
    a.w_up = up.on(backend, role), a.w_down = down.on(backend, role);
    if (s.biases) {
      a.b_router = view(b_router, {s.n_experts}), a.b_gate = view(b_gate, {s.n_experts, s.expert_dim});
      a.b_up = view(b_up, {s.n_experts, s.expert_dim}), a.b_down = view(b_down, {s.n_experts, s.dim});
    }
    if (s.shared_dim > 0) {
      a.w_shared_gate = shared[0].on(backend, role), a.w_shared_up = shared[1].on(backend, role);
      a.w_shared_down = shared[2].on(backend, role);
      if (s.mix) a.shared_mix = view(mix, {s.dim});
      a.shared_gate = Tensor(room(n * s.shared_dim), DType::F32, {n, s.shared_dim});
      a.shared_up = Tensor(room(n * s.shared_dim), DType::F32, {n, s.shared_dim});
      a.shared_down = Tensor(room(n * s.dim), DType::F32, {n, s.dim});
    }
    a.add.x = view(out, {n, s.dim}), a.add.branch = Tensor(room(n * s.dim), DType::F32, {n, s.dim});
    if (s.post_norm) a.add.norm = view(post, {s.dim});
    a.normed = Tensor(room(n * s.dim), DType::F32, {n, s.dim});
    a.router = Tensor(room(n * s.n_experts), DType::F32, {n, s.n_experts});
    ids.assign(static_cast<size_t>(n * s.n_active), -1);
    a.ids = view(ids, {n, s.n_active});
    a.weights = Tensor(room(n * s.n_active), DType::F32, {n, s.n_active});
    a.gate = Tensor(room(n * s.n_active * s.expert_dim), DType::F32, {n, s.n_active, s.expert_dim});
    a.up = Tensor(room(n * s.n_active * s.expert_dim), DType::F32, {n, s.n_active, s.expert_dim});
    a.down = Tensor(room(n * s.n_active * s.dim), DType::F32, {n, s.n_active, s.dim});
    way == Way::fused ? backend.moe_ffn(a) : backend.Backend::moe_ffn(a);
    return out;
  }

 private:
  std::vector<Floats> scratch_;
};

using cpu_test::nmse;
using cpu_test::same_bits;

std::vector<BackendOptions> all_options() {
  std::vector<BackendOptions> list;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!cpu::isa_available(isa)) continue;
    for (int threads : {1, 3}) list.push_back({threads, cpu::to_string(isa)});
  }
  return list;
}

std::vector<Shape> shapes() {
  std::vector<Shape> list = {Shape{}};
  Shape odd;  // nothing is a multiple of anything
  odd.dim = 34, odd.n_experts = 7, odd.n_active = 3, odd.expert_dim = 21, odd.shared_dim = 51;
  odd.biases = odd.post_norm = true, odd.sum_to_one = false, odd.scale = 2.5f;
  list.push_back(odd);
  odd.n_active = 1, odd.mix = true, odd.gate = odd.down = odd.shared = DType::F16, odd.up = DType::BF16;
  list.push_back(odd);
  Shape all;  // every expert is chosen
  all.n_experts = all.n_active = 4, all.expert_dim = 96, all.gate = all.up = all.down = DType::Q8_0;
  list.push_back(all);
  Shape one = all;
  one.n_experts = one.n_active = 1, one.sum_to_one = false;
  list.push_back(one);
  Shape oss;
  oss.activation = Activation::silu_clamped, oss.biases = true, oss.n_experts = 9, oss.n_active = 4;
  oss.gate = oss.up = oss.down = DType::MXFP4, oss.expert_dim = 64;
  list.push_back(oss);
  Shape mixed;  // formats of different forms side by side
  mixed.dim = 256, mixed.expert_dim = 256, mixed.n_experts = 40, mixed.n_active = 6, mixed.shared_dim = 512;
  mixed.gate = DType::Q4_K, mixed.up = DType::F16, mixed.down = DType::Q6_K, mixed.shared = DType::Q8_0;
  mixed.mix = true, mixed.sum_to_one = false, mixed.activation = Activation::gelu_tanh;
  list.push_back(mixed);
  return list;
}

double bar(const Shape& s) {
  double worst = 1e-8;
  for (const DType type : {s.gate, s.up, s.down, s.shared_dim > 0 ? s.shared : DType::F32}) {
    const bool plain = type == DType::F32 || type == DType::F16;
    worst = std::max(worst, plain ? 1e-8 : type == DType::BF16 ? 2e-5 : 1e-3);
  }
  return worst;
}

}  // namespace

TEST_CASE("the largest logits are chosen, and weighed by a softmax of all or of the chosen") {
  const Floats logits = {0.5f, 3, -1, 2, 2.5f, -8, 1};
  double all = 0, three = 0;
  for (const float l : logits) all += std::exp(l);
  for (const double l : {3.0, 2.5, 2.0}) three += std::exp(l);
  for (const bool sum_to_one : {false, true}) {
    const Choice c = route(logits, 3, sum_to_one, 0.5f);
    CHECK(c.ids == std::vector<int32_t>{1, 4, 3});
    for (size_t s = 0; s < 3; ++s) {
      const double exponent = std::exp(logits[static_cast<size_t>(c.ids[s])]);
      CHECK(c.weights[s] == Approx(0.5 * exponent / (sum_to_one ? three : all)).epsilon(1e-6));
    }
  }
  const Choice every = route(logits, 7, true);
  CHECK(std::accumulate(every.weights.begin(), every.weights.end(), 0.0) == Approx(1));
  CHECK(every.ids == std::vector<int32_t>{1, 4, 3, 6, 0, 2, 5});
}

TEST_CASE("of equal logits the lower id is chosen") {
  CHECK(route({1, 2, 2, 1, 2}, 2, true).ids == std::vector<int32_t>{1, 2});
  CHECK(route({0, 0, 0}, 3, true).ids == std::vector<int32_t>{0, 1, 2});
  CHECK(route({-INFINITY, 1, -INFINITY}, 2, true).ids == std::vector<int32_t>{1, 0});
}

TEST_CASE("logits that are no numbers choose valid experts, all weights of which are no numbers") {
  for (const bool sum_to_one : {false, true}) {
    for (const Floats& logits : {Floats{NAN, 1, 2}, Floats{NAN, NAN, NAN}, Floats{1, NAN, 0}}) {
      const Choice c = route(logits, 2, sum_to_one);
      CHECK(c.ids[0] != c.ids[1]);
      for (size_t s = 0; s < 2; ++s) {
        CHECK((c.ids[s] >= 0 && c.ids[s] < 3));
        CHECK(std::isnan(c.weights[s]));
      }
    }
  }
  CHECK(route({NAN, 1, 2}, 2, true).ids == std::vector<int32_t>{2, 1});
}

TEST_CASE("the stage of experts on ref is its definition, written out") {
  const auto ref = make_backend("ref");
  Shape s;
  s.dim = 8, s.n_experts = 5, s.n_active = 2, s.expert_dim = 6, s.shared_dim = 4, s.biases = s.mix = true;
  s.sum_to_one = GENERATE(false, true), s.activation = GENERATE(Activation::silu, Activation::silu_clamped);
  Layer layer(s, 3);
  for (float& x : layer.b_gate) x *= 8;  // beyond the clamp
  const Floats got = layer.run(*ref);
  const Floats router = layer.router.values(), gate = layer.gate.values(), up = layer.up.values(),
               down = layer.down.values();
  const auto product = [](const float* w, const double* x, int64_t k) {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += w[i] * x[i];
    return sum;
  };
  const auto hidden = [&](double g, double u) {
    if (s.activation == Activation::silu) return g / (1 + std::exp(-g)) * u;
    g = std::min(g, 7.0), u = std::clamp(u, -7.0, 7.0);
    return g / (1 + std::exp(-1.702 * g)) * (u + 1);
  };
  const int64_t d = s.dim, f = s.expert_dim;
  for (int64_t t = 0; t < 3; ++t) {
    const float* x = layer.x.data() + t * d;
    double squares = 0, total = 0, y[8], want[8], logits[5];
    for (int64_t i = 0; i < d; ++i) squares += static_cast<double>(x[i]) * x[i];
    for (int64_t i = 0; i < d; ++i)
      y[i] = x[i] / std::sqrt(squares / 8 + 1e-5) * layer.norm[static_cast<size_t>(i)], want[i] = x[i];
    for (int64_t e = 0; e < 5; ++e)
      logits[e] = product(router.data() + e * d, y, d) + layer.b_router[static_cast<size_t>(e)];
    std::vector<int64_t> order = {0, 1, 2, 3, 4};
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
    for (int64_t e = 0; e < (s.sum_to_one ? 2 : 5); ++e) total += std::exp(logits[order[static_cast<size_t>(e)]]);
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t e = order[static_cast<size_t>(i)];
      double h[6];
      for (int64_t j = 0; j < f; ++j) {
        const auto at = static_cast<size_t>(e * f + j);
        h[j] = hidden(product(gate.data() + (e * f + j) * d, y, d) + layer.b_gate[at],
                      product(up.data() + (e * f + j) * d, y, d) + layer.b_up[at]);
      }
      for (int64_t j = 0; j < d; ++j) {
        want[j] += std::exp(logits[e]) / total *
                   (product(down.data() + (e * d + j) * f, h, f) + layer.b_down[static_cast<size_t>(e * d + j)]);
      }
    }
    const Floats sg = layer.shared[0].values(), su = layer.shared[1].values(), sd = layer.shared[2].values();
    double h[4];
    for (int64_t j = 0; j < 4; ++j) h[j] = hidden(product(sg.data() + j * d, y, d), product(su.data() + j * d, y, d));
    const double share = 1 / (1 + std::exp(-product(layer.mix.data(), y, d)));
    for (int64_t j = 0; j < d; ++j) want[j] += share * product(sd.data() + j * 4, h, 4);
    for (int64_t j = 0; j < d; ++j)
      CHECK(got[static_cast<size_t>(t * d + j)] == Approx(want[j]).epsilon(1e-5).margin(1e-5));
  }
}

TEST_CASE("the cpu gives the oracle's numbers for experts, and the bits of its primitives") {
  const auto ref = make_backend("ref");
  for (const Shape& shape : shapes()) {
    for (const int64_t n : {1, 2, 3, 9, 70}) {
      Layer layer(shape, n);
      const Floats wanted = layer.run(*ref);
      const std::vector<int32_t> chosen = layer.ids;
      for (const BackendOptions& options : all_options()) {
        const auto backend = make_backend("cpu", options);
        INFO("experts " << shape.n_experts << " active " << shape.n_active << " dim " << shape.dim << " tokens " << n
                        << " " << options.isa << " " << options.n_threads);
        const Floats fused = layer.run(*backend);
        REQUIRE(layer.ids == chosen);
        REQUIRE(nmse(fused, wanted) < bar(shape));
        REQUIRE(same_bits(fused, layer.run(*backend, Way::composed)));
      }
    }
  }
}

TEST_CASE("activations that meet fine experts keep 16 bits on the cpu, in the stage as in its primitives") {
  Shape oss;
  oss.n_experts = 9, oss.n_active = 4, oss.expert_dim = 96, oss.biases = true;
  oss.gate = oss.up = oss.down = DType::MXFP4, oss.activation = Activation::silu_clamped;
  Shape shared;
  shared.dim = 96, shared.shared_dim = 160, shared.mix = true;
  shared.gate = shared.up = DType::Q4_0, shared.down = shared.shared = DType::Q8_0;
  const auto reference = make_backend("ref"), cpu = make_backend("cpu");
  for (const Shape& shape : {oss, shared})
    for (const int64_t n : {1, 3, 40}) {
      INFO(n << " tokens");
      Layer layer(shape, n);
      const Floats wanted = layer.run(*reference), coarse = layer.run(*cpu);
      const std::vector<int32_t> chosen = layer.ids;
      CHECK(nmse(coarse, wanted) > 1e-6);  // what 8 bits cost
      layer.role = WeightRole::fine_matrix;
      const Floats fine = layer.run(*cpu);
      CHECK(layer.ids == chosen);
      CHECK(nmse(fine, wanted) < 1e-8);
      CHECK(same_bits(layer.run(*cpu, Way::composed), fine));
    }
}

TEST_CASE("a step of many tokens gives each the bits that it gets alone, whatever experts the others choose") {
  for (const Shape& shape : shapes()) {
    Layer many(shape, 21);
    for (const BackendOptions& options : all_options()) {
      const auto backend = make_backend("cpu", options);
      const Floats together = many.run(*backend);
      for (const int64_t size : {1, 2, 5}) {
        for (int64_t t = 0; t + size <= many.n; t += 4 * size) {
          Layer part(shape, size);
          part.x.assign(many.x.begin() + t * shape.dim, many.x.begin() + (t + size) * shape.dim);
          const Floats wanted(together.begin() + t * shape.dim, together.begin() + (t + size) * shape.dim);
          INFO("experts " << shape.n_experts << " tokens " << t << "+" << size << " " << options.isa);
          REQUIRE(same_bits(part.run(*backend), wanted));
        }
      }
    }
  }
}

TEST_CASE("experts that tie, and rows that are no numbers, are the same on the cpu as on ref") {
  const auto ref = make_backend("ref");
  Shape shape;
  shape.n_experts = 6, shape.n_active = 3;
  for (const int64_t n : {1, 2, 12}) {
    Layer layer(shape, n);
    std::memset(layer.router.bytes.data(), 0, layer.router.bytes.size());
    const Floats wanted = layer.run(*ref);
    for (size_t i = 0; i < layer.ids.size(); ++i) CHECK(layer.ids[i] == static_cast<int32_t>(i % 3));
    for (const BackendOptions& options : all_options()) {
      const auto backend = make_backend("cpu", options);
      CHECK(nmse(layer.run(*backend), wanted) < 1e-8);
      for (size_t i = 0; i < layer.ids.size(); ++i) CHECK(layer.ids[i] == static_cast<int32_t>(i % 3));
    }
    Layer broken(shape, n);
    broken.x[static_cast<size_t>((n - 1) * shape.dim)] = NAN;
    const Floats without = broken.run(*ref);
    CHECK(std::isnan(without.back()));
    CHECK((n == 1 || std::isfinite(without.front())));
    for (const BackendOptions& options : all_options())
      CHECK(nmse(broken.run(*make_backend("cpu", options)), without) < 1e-8);
  }
}

TEST_CASE("ids that no expert has are refused") {
  for (const char* name : {"ref", "cpu"}) {
    const auto backend = make_backend(name);
    Weight w(DType::F32, {3, 16, 8}, 1);
    Floats x = random_floats(8, 2), out(16);
    for (const int32_t wrong : {-1, 3}) {
      std::vector<int32_t> ids = {wrong};
      CHECK_THROWS_AS(
          backend->expert_matmul({view(x, {1, 8}), w.on(*backend), {}, view(ids, {1, 1}), view(out, {1, 1, 16})}),
          Error);
    }
  }
}

TEST_CASE("q and k are normed over all heads at once where the weight is as long") {
  const auto ref = make_backend("ref");
  const int64_t heads = 3, head_dim = 4, width = heads * head_dim;
  for (const bool cpu : {false, true}) {
    const auto backend = make_backend(cpu ? "cpu" : "ref");
    Floats q = random_floats(width, 1), k = random_floats(width, 2), v = random_floats(width, 3), q_norm(width, 2.0f),
           k_norm(width, 0.5f), k_cache(width * kPageTokens), v_cache(k_cache);
    const Floats q_before = q, k_before = k;
    std::vector<int32_t> positions = {0}, slots = {0};
    RopeStoreArgs a;
    a.q = view(q, {1, heads, head_dim}), a.k = view(k, {1, heads, head_dim}), a.v = view(v, {1, heads, head_dim});
    a.q_norm = view(q_norm, {width}), a.k_norm = view(k_norm, {width}), a.eps = 0;
    a.positions = view(positions, {1}), a.slots = view(slots, {1});
    a.k_cache = view(k_cache, {1, heads, kPageTokens, head_dim});
    a.v_cache = view(v_cache, {1, heads, kPageTokens, head_dim});
    backend->rope_store(a);
    for (const auto& [after, before, weight] : {std::tuple(&q, &q_before, 2.0), {&k, &k_before, 0.5}}) {
      double squares = 0;
      for (const float value : *before) squares += static_cast<double>(value) * value;
      for (size_t i = 0; i < before->size(); ++i)
        CHECK((*after)[i] == Approx((*before)[i] * weight / std::sqrt(squares / 12)).epsilon(1e-5));
    }
  }
}

TEST_CASE("experts cost what a token's own experts weigh, and all of them for many tokens") {
  Shape s;
  s.n_experts = 8, s.n_active = 2;
  Weight w(DType::Q8_0, {8, 32, 64}, 1);
  const auto cost_of = [&](int64_t n) {
    Floats x(static_cast<size_t>(n * 64)), out(static_cast<size_t>(n * 2 * 32));
    std::vector<int32_t> ids(static_cast<size_t>(n * 2));
    return cost(ExpertMatmulArgs{view(x, {n, 64}), w.host, {}, view(ids, {n, 2}), view(out, {n, 2, 32})});
  };
  CHECK(cost_of(1).weight_bytes == Approx(2 * 32 * 68));
  CHECK(cost_of(2).weight_bytes == Approx((1 - 0.75 * 0.75) * 8 * 32 * 68));
  CHECK(cost_of(500).weight_bytes == Approx(8 * 32 * 68));
  CHECK(cost_of(3).flops == 2.0 * 3 * 2 * 32 * 64);
}
