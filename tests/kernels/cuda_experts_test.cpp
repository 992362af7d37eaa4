// Experts on the GPU against the oracle: the choice exactly, the products of each format, and the whole stage with as
// many tokens as go each by itself, and sorted to groups of eight and of sixteen.
#include <bit>

#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

/// A stack of matrices.
Weight stack(DType type, int64_t n, int64_t rows, int64_t cols, uint32_t seed) {
  Weight w(type, n * rows, cols, seed);
  w.host = Tensor(w.bytes.data(), type, {n, rows, cols});
  return w;
}

Tensor integers(Tensor t) {
  t.dtype = DType::I32;
  return t;
}
/// What integers() left in a vector of floats, as numbers.
Floats as_numbers(Floats bits) {
  for (float& x : bits) x = static_cast<float>(std::bit_cast<int32_t>(x));
  return bits;
}

double expert_bar(DType type) {
  return type == DType::F32 ? 1e-9 : type == DType::F16 ? 1e-6 : 1e-4;  // of activations rounded as the weights
}

struct Shape {
  int64_t dim = 64, n_experts = 5, n_active = 2, expert_dim = 32, shared_dim = 0;
  DType gate = DType::F32, up = DType::F32, down = DType::F32, shared = DType::F32;
  DType router = DType::F32;
  bool biases = false, mix = false, post_norm = false, sum_to_one = true;
  float weight_scale = 1, scale = 1;
  Activation activation = Activation::silu;
};

Shape experts_of(DType type) {
  Shape s;
  s.gate = s.up = s.down = s.shared = type;
  return s;
}

std::vector<Shape> shapes() {
  std::vector<Shape> list = {Shape{}};
  Shape odd;  // nothing is a multiple of anything
  odd.dim = 36, odd.n_experts = 7, odd.n_active = 3, odd.expert_dim = 21, odd.shared_dim = 52;
  odd.biases = odd.post_norm = true, odd.sum_to_one = false;
  list.push_back(odd);
  odd.n_active = 1, odd.mix = true, odd.gate = odd.down = odd.shared = DType::F16, odd.up = DType::BF16;
  list.push_back(odd);
  Shape oss;
  oss.activation = Activation::silu_clamped, oss.biases = true, oss.n_experts = 9, oss.n_active = 4;
  oss.gate = oss.up = oss.down = DType::MXFP4, oss.expert_dim = 96;
  list.push_back(oss);
  Shape mixed;
  mixed.dim = 512, mixed.expert_dim = 256, mixed.n_experts = 40, mixed.n_active = 6, mixed.shared_dim = 512;
  mixed.gate = DType::Q4_K, mixed.up = DType::F16, mixed.down = DType::Q6_K, mixed.shared = DType::Q8_0;
  mixed.mix = true, mixed.sum_to_one = false, mixed.activation = Activation::gelu_tanh;
  list.push_back(mixed);
  mixed.up = DType::Q4_K, mixed.n_experts = 64, mixed.n_active = 8;  // as olmoe, and qwen2_moe with its shared expert
  list.push_back(mixed);
  mixed.shared_dim = 0, mixed.mix = false, mixed.sum_to_one = true, mixed.activation = Activation::silu;
  mixed.weight_scale = 2.5f, mixed.scale = 0.5f;
  list.push_back(mixed);
  mixed.n_experts = 256, mixed.n_active = 32, mixed.dim = mixed.expert_dim = 256;  // as many as are chosen in passing
  list.push_back(mixed);
  mixed.n_experts = 257;  // and one more
  list.push_back(mixed);
  mixed.n_experts = 33, mixed.n_active = 33;
  list.push_back(mixed);
  mixed.shared_dim = 512, mixed.mix = true, mixed.sum_to_one = false, mixed.activation = Activation::gelu_tanh;
  mixed.dim = 3072, mixed.expert_dim = 256, mixed.n_experts = mixed.n_active = 4;  // chunk after chunk
  list.push_back(mixed);
  for (const DType type : {DType::F16, DType::BF16, DType::Q8_0}) {
    list.push_back(experts_of(type));
    list.back().dim = 160, list.back().expert_dim = 96, list.back().biases = list.back().post_norm = true;
    list.back().shared_dim = type == DType::F16 ? 0 : 96;
  }
  Shape plain = odd;  // rows of 16-bit numbers that no load of four divides
  plain.gate = plain.up = plain.down = DType::BF16, plain.shared_dim = 0, plain.mix = false, plain.n_active = 3;
  list.push_back(plain);
  return list;
}

/// The weights of a layer, and its stage of experts for some rows on any backend.
struct Layer {
  Shape s;
  int64_t shared_dim;
  Weight router, gate, up, down, shared_gate, shared_up, shared_down;

  explicit Layer(const Shape& shape)
      : s(shape),
        shared_dim(s.shared_dim > 0 ? s.shared_dim : 256),
        router(s.router, s.n_experts, s.dim, 1),
        gate(stack(s.gate, s.n_experts, s.expert_dim, s.dim, 2)),
        up(stack(s.up, s.n_experts, s.expert_dim, s.dim, 3)),
        down(stack(s.down, s.n_experts, s.dim, s.expert_dim, 4)),
        shared_gate(s.shared, shared_dim, s.dim, 5),
        shared_up(s.shared, shared_dim, s.dim, 6),
        shared_down(s.shared, s.dim, shared_dim, 7) {}

  /// The residual stream, and the experts that were chosen.
  Floats run(Backend& b, Floats x, const std::function<void(const MoeFfnArgs&)>& stage) const {
    const int64_t n = static_cast<int64_t>(x.size()) / s.dim;
    Side side(b);
    Floats branch = poison(n * s.dim), ids = poison(n * s.n_active);
    const auto room = [&](Dims shape) {
      int64_t count = 1;
      for (const int64_t d : shape) count *= d;
      return side.in(poison(count), shape);
    };
    MoeFfnArgs a;
    a.norm = side.in(random_floats(s.dim, 10), {s.dim});
    a.sum_to_one = s.sum_to_one, a.weight_scale = s.weight_scale, a.activation = s.activation;
    a.w_router = side.weight(router), a.w_gate = side.weight(gate), a.w_up = side.weight(up);
    a.w_down = side.weight(down);
    if (s.biases) {
      a.b_router = side.in(random_floats(s.n_experts, 13), {s.n_experts});
      a.b_gate = side.in(random_floats(s.n_experts * s.expert_dim, 14), {s.n_experts, s.expert_dim});
      a.b_up = side.in(random_floats(s.n_experts * s.expert_dim, 15), {s.n_experts, s.expert_dim});
      a.b_down = side.in(random_floats(s.n_experts * s.dim, 16), {s.n_experts, s.dim});
    }
    if (s.shared_dim > 0) {
      a.w_shared_gate = side.weight(shared_gate), a.w_shared_up = side.weight(shared_up);
      a.w_shared_down = side.weight(shared_down);
      if (s.mix) a.shared_mix = side.in(random_floats(s.dim, 12, 0.3f), {s.dim});
      a.shared_gate = room({n, shared_dim}), a.shared_up = room({n, shared_dim});
      a.shared_down = room({n, s.dim});
    }
    a.add.x = side.out(x, {n, s.dim}), a.add.branch = side.out(branch, {n, s.dim}), a.add.scale = s.scale;
    if (s.post_norm) a.add.norm = side.in(random_floats(s.dim, 11), {s.dim});
    a.normed = room({n, s.dim}), a.router = room({n, s.n_experts});
    a.ids = integers(side.out(ids, {n, s.n_active})), a.weights = room({n, s.n_active});
    a.order = integers(room({n, 2 * s.n_active})), a.starts = integers(room({s.n_experts + 1}));
    a.gate = room({n, s.n_active, s.expert_dim}), a.up = room({n, s.n_active, s.expert_dim});
    a.down = room({n, s.n_active, s.dim});
    stage(a);
    side.fetch();
    append(x, as_numbers(ids));
    return x;
  }
  Floats run(Backend& b, const Floats& x) const {
    return run(b, x, [&](const MoeFfnArgs& a) { b.moe_ffn(a); });
  }
  Floats run(Backend& b, int64_t n) const { return run(b, random_floats(n * s.dim, 17)); }
};

double stage_bar(const Shape& s) {
  double worst = 0;
  for (const DType type : {s.gate, s.up, s.down, s.shared}) worst = std::max(worst, 10 * expert_bar(type));
  // Weights of random bits make gates in the hundreds, where being clamped or not hangs on what int8 rounds.
  const bool steps = s.activation == Activation::silu_clamped && !is_plain(s.gate);
  return steps ? 10 * worst : worst;
}

void check_stage(const Shape& s, std::initializer_list<int64_t> tokens) {
  const Layer layer(s);
  for (const int64_t n : tokens)
    compare(stage_bar(s),
            "experts " + format_name(s.gate) + " dim " + std::to_string(s.dim) + " of " + std::to_string(s.n_experts) +
                " tokens " + std::to_string(n),
            [&](Backend& b) { return layer.run(b, n); });
}

}  // namespace

TEST_CASE("cuda: experts are chosen as by the oracle, whatever the logits") {
  if (skipped()) return;
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const int64_t n_experts : {1, 5, 32, 33, 128, 4096})
    for (const int64_t n_active : {int64_t{1}, std::min<int64_t>(n_experts, 8), std::min<int64_t>(n_experts, 40)})
      for (const bool sum_to_one : {false, true}) {
        const int64_t n = 9;
        Floats logits = random_floats(n * n_experts, 3, 2);
        for (int64_t i = 0; i < n_experts; ++i) logits[static_cast<size_t>(i)] = static_cast<float>(i % 3);  // ties
        for (int64_t i = 0; i < n_experts; ++i) logits[static_cast<size_t>(n_experts + i)] = nan;
        logits[static_cast<size_t>(2 * n_experts)] = nan;
        logits[static_cast<size_t>(3 * n_experts)] = -inf;
        compare(1e-11, "route " + std::to_string(n_experts) + " " + std::to_string(n_active), [&](Backend& b) {
          Side side(b);
          Floats ids = poison(n * n_active), weights = poison(n * n_active);
          b.route({side.in(logits, {n, n_experts}), sum_to_one, 1.5f, integers(side.out(ids, {n, n_active})),
                   side.out(weights, {n, n_active})});
          side.fetch();
          append(weights, as_numbers(ids));
          return weights;
        });
      }
}

TEST_CASE("cuda: products with experts agree with the oracle in every format") {
  if (skipped()) return;
  for (const DType type : kWeightFormats) {
    const int64_t n = 3, n_experts = 5, n_active = 2, rows = 35, cols = 512;
    const Weight w = stack(type, n_experts, rows, cols, 5);
    const Ints ids = {4, 1, 0, 4, 2, 3};
    for (const bool own : {false, true})
      compare(expert_bar(type), "expert_matmul " + format_name(type), [&](Backend& b) {
        Side side(b);
        Floats out = poison(n * n_active * rows);
        const Floats x = random_floats(n * n_active * cols, 7);
        ExpertMatmulArgs a;
        a.x = own ? side.in(x, {n, n_active, cols}) : side.in(x, {n, cols});
        a.w = side.weight(w), a.bias = side.in(random_floats(n_experts * rows, 8), {n_experts, rows});
        a.ids = side.in(ids, {n, n_active}), a.out = side.out(out, {n, n_active, rows});
        b.expert_matmul(a);
        side.fetch();
        return out;
      });
  }
}

TEST_CASE("cuda: the stage of experts agrees with the oracle") {
  if (skipped()) return;
  for (const Shape& s : shapes()) check_stage(s, {1, 2, 3, 8, 9, 33, 70});
}

TEST_CASE("cuda: experts of every format agree with the oracle, token by token and sorted") {
  if (skipped()) return;
  for (const DType type : kFormats) {
    Shape s = experts_of(type);
    s.dim = 512, s.expert_dim = 256, s.n_experts = 9, s.n_active = 3;
    check_stage(s, {1, 3, 8, 9});
    s.biases = true, s.activation = Activation::silu_clamped, s.router = DType::BF16;
    check_stage(s, {1, 8});
  }
}

TEST_CASE("cuda: experts of tokens whose logits are equal or no numbers") {
  if (skipped()) return;
  Shape s = experts_of(DType::Q8_0);
  s.n_experts = 40, s.n_active = 4;
  const Layer layer(s);
  Floats x = random_floats(3 * s.dim, 17);
  for (int64_t i = 0; i < s.dim; ++i) x[static_cast<size_t>(i)] = 0;
  x[static_cast<size_t>(s.dim + 5)] = std::numeric_limits<float>::quiet_NaN();
  compare(stage_bar(s), "equal, NaN, ordinary", [&](Backend& b) { return layer.run(b, x); });
}

TEST_CASE("cuda: a token's experts give the same bits alone and among eight") {
  if (skipped()) return;
  for (const DType type : {DType::BF16, DType::Q4_K, DType::MXFP4}) {
    Shape s = experts_of(type);
    s.dim = 512, s.expert_dim = 256, s.n_experts = 20, s.n_active = 6, s.biases = true;
    const Layer layer(s);
    const Floats x = random_floats(8 * s.dim, 17), together = layer.run(gpu(), x);
    for (int64_t t = 0; t < 8; ++t) {
      const Floats alone = layer.run(gpu(), Floats(x.begin() + t * s.dim, x.begin() + (t + 1) * s.dim));
      INFO(format_name(type) << ", token " << t);
      CHECK(std::equal(alone.begin(), alone.begin() + s.dim, together.begin() + t * s.dim));
    }
  }
}

TEST_CASE("cuda: the stage of experts is three launches for up to eight tokens, and three more with a shared expert") {
  if (skipped()) return;
  for (const DType type : {DType::BF16, DType::Q4_K, DType::MXFP4})
    for (const bool shared : {false, true})
      for (const int64_t n : {1, 2, 8}) {
        Shape s = experts_of(type);
        s.dim = 512, s.expert_dim = 256, s.n_experts = 64, s.n_active = 8, s.shared_dim = shared ? 256 : 0;
        s.shared = type;
        int64_t launches = 0;
        Layer(s).run(gpu(), random_floats(n * s.dim, 17), [&](const MoeFfnArgs& a) {
          const int64_t before = gpu().stats().launches;
          gpu().moe_ffn(a);
          launches = gpu().stats().launches - before;
        });
        INFO(format_name(type) << ", shared " << shared << ", tokens " << n);
        if (!shared) CHECK(launches == 3);
        if (shared && n <= 2) CHECK(launches == 6);
      }
}
