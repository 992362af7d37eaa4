// Stages of the cpu backend: each against the oracle, each against the primitives it is made of (bit for bit where it
// rounds like them), and a step of many tokens against steps of one (bit for bit).
#include "tests/kernels/cpu_side.h"

namespace cpu_stages_test {
using namespace infer;
using namespace infer::cpu_test;

struct Shape {
  int64_t dim = 64, n_heads = 4, n_kv_heads = 2, head_dim = 16, ffn_dim = 96, vocab = 100;
  DType wq = DType::Q8_0, wv = DType::Q8_0, wo = DType::Q8_0, gate = DType::Q8_0, down = DType::Q8_0;
  DType cache = DType::F16;
  bool biases = false, head_norms = false, post_norms = false, adjacent = false;
  Activation activation = Activation::silu;
  float softcap = 0, residual_scale = 1;
};

enum class Way { fused, composed };

/// One layer's buffers for n tokens, on one backend. Each method runs a stage and returns all that it wrote.
struct Layer {
  Backend& backend;
  Shape s;
  int64_t n;
  Weight wq, wk, wv, wo, gate, up, down, head;
  Floats norm, bq, bk, bv, bo, b_gate, b_up, b_down, q_norm, k_norm, post, head_bias, cos_sin;
  std::vector<int32_t> positions, slots, rows;
  Floats x, attn;
  Floats q, k, v, normed, branch, gated, upped, logits_out;
  std::vector<char> k_cache, v_cache;

  Layer(Backend& b, const Shape& shape, int64_t n_tokens)
      : backend(b),
        s(shape),
        n(n_tokens),
        wq(s.wq, s.n_heads * s.head_dim, s.dim, 1),
        wk(s.wq, s.n_kv_heads * s.head_dim, s.dim, 2),
        wv(s.wv, s.n_kv_heads * s.head_dim, s.dim, 3),
        wo(s.wo, s.dim, s.n_heads * s.head_dim, 4),
        gate(s.gate, s.ffn_dim, s.dim, 5),
        up(s.wv, s.ffn_dim, s.dim, 6),
        down(s.down, s.dim, s.ffn_dim, 7),
        head(s.wq, s.vocab, s.dim, 8) {
    norm = random_floats(s.dim, 10), post = random_floats(s.dim, 11);
    bq = random_floats(s.n_heads * s.head_dim, 12), bk = random_floats(s.n_kv_heads * s.head_dim, 13);
    bv = random_floats(s.n_kv_heads * s.head_dim, 14), bo = random_floats(s.dim, 15);
    b_gate = random_floats(s.ffn_dim, 16), b_up = random_floats(s.ffn_dim, 17), b_down = random_floats(s.dim, 18);
    q_norm = random_floats(s.head_dim, 19), k_norm = random_floats(s.head_dim, 20);
    head_bias = random_floats(s.vocab, 21);
    cos_sin = random_floats(1000 * (s.head_dim / 2), 22);
    x = random_floats(n * s.dim, 23), attn = random_floats(n * s.n_heads * s.head_dim, 24);
    for (int64_t t = 0; t < n; ++t) {
      positions.push_back(static_cast<int32_t>(t + 3));
      slots.push_back(static_cast<int32_t>((t * 7) % (n_pages() * kPageTokens)));  // 7 and 32 have no common factor
      rows.push_back(static_cast<int32_t>(n - 1 - t));
    }
    const int64_t cache_rows = n_pages() * s.n_kv_heads * kPageTokens;
    k_cache.assign(static_cast<size_t>(tensor_bytes(s.cache, cache_rows, s.head_dim)), 0);
    v_cache = k_cache;
    q = poison(n * s.n_heads * s.head_dim), k = poison(n * s.n_kv_heads * s.head_dim), v = k;
    normed = poison(n * s.dim), branch = poison(n * s.dim), gated = poison(n * s.ffn_dim), upped = gated;
    logits_out = poison(n * s.vocab);
  }
  /// Keeps the tokens [from, from + count) of a layer of more.
  Layer slice(int64_t from, int64_t count) const {
    Layer part(backend, s, count);
    auto cut = [&](const Floats& all, int64_t width) {
      return Floats(all.begin() + from * width, all.begin() + (from + count) * width);
    };
    part.x = cut(x, s.dim), part.attn = cut(attn, s.n_heads * s.head_dim);
    part.positions.assign(positions.begin() + from, positions.begin() + from + count);
    part.k_cache.assign(k_cache.size(), 0), part.v_cache = part.k_cache;
    part.slots.assign(slots.begin() + from, slots.begin() + from + count);
    return part;
  }
  int64_t n_pages() const { return 1 + 200 / kPageTokens * 2; }
  Tensor maybe(bool wanted, Floats& values) {
    return wanted ? view(values, {static_cast<int64_t>(values.size())}) : Tensor();
  }
  Tensor cache(std::vector<char>& bytes) {
    const auto row = static_cast<int64_t>(row_bytes(s.cache, s.head_dim));
    const int64_t pages = static_cast<int64_t>(bytes.size()) / (row * s.n_kv_heads * kPageTokens);
    return Tensor(bytes.data(), s.cache, {pages, s.n_kv_heads, kPageTokens, s.head_dim});
  }
  AddArgs add_args() {
    AddArgs a;
    a.x = view(x, {n, s.dim}), a.branch = view(branch, {n, s.dim});
    a.norm = maybe(s.post_norms, post), a.scale = s.residual_scale;
    return a;
  }
  RopeStoreArgs rope_args() {
    RopeStoreArgs r;
    r.q = view(q, {n, s.n_heads, s.head_dim});
    r.k = view(k, {n, s.n_kv_heads, s.head_dim}), r.v = view(v, {n, s.n_kv_heads, s.head_dim});
    r.q_norm = maybe(s.head_norms, q_norm), r.k_norm = maybe(s.head_norms, k_norm);
    r.rope = {view(cos_sin, {500, s.head_dim / 4, 2}), s.adjacent};  // the rest of the head stays as it is
    r.positions = view(positions, {n}), r.slots = view(slots, {n});
    r.k_cache = cache(k_cache), r.v_cache = cache(v_cache);
    return r;
  }
  Floats cache_values(const std::vector<char>& bytes) const {
    Floats out(bytes.size() / static_cast<size_t>(row_bytes(s.cache, s.head_dim)) * static_cast<size_t>(s.head_dim));
    REQUIRE(decode_row(s.cache, bytes.data(), out.data(), static_cast<int64_t>(out.size())));
    return out;
  }

  Floats attn_in(Way way = Way::fused) {
    AttnInArgs a;
    a.x = view(x, {n, s.dim}), a.norm = view(norm, {s.dim}), a.normed = view(normed, {n, s.dim});
    a.wq = wq.on(backend), a.wk = wk.on(backend), a.wv = wv.on(backend);
    a.bq = maybe(s.biases, bq), a.bk = maybe(s.biases, bk), a.bv = maybe(s.biases, bv);
    a.rope_store = rope_args();
    way == Way::fused ? backend.attn_in(a) : backend.Backend::attn_in(a);
    Floats out = q;
    for (const auto* c : {&k_cache, &v_cache}) {
      const Floats values = cache_values(*c);
      out.insert(out.end(), values.begin(), values.end());
    }
    return out;
  }
  Floats attn_out(Way way = Way::fused) {
    AttnOutArgs a{view(attn, {n, s.n_heads * s.head_dim}), wo.on(backend), maybe(s.biases, bo), add_args()};
    way == Way::fused ? backend.attn_out(a) : backend.Backend::attn_out(a);
    return x;
  }
  Floats ffn(Way way = Way::fused) {
    FfnArgs a;
    a.norm = view(norm, {s.dim}), a.activation = s.activation, a.add = add_args();
    a.w_gate = gate.on(backend), a.w_up = up.on(backend), a.w_down = down.on(backend);
    a.b_gate = maybe(s.biases, b_gate), a.b_up = maybe(s.biases, b_up), a.b_down = maybe(s.biases, b_down);
    a.normed = view(normed, {n, s.dim}), a.gate = view(gated, {n, s.ffn_dim}), a.up = view(upped, {n, s.ffn_dim});
    way == Way::fused ? backend.ffn(a) : backend.Backend::ffn(a);
    return x;
  }
  Floats logits(Way way = Way::fused) {
    LogitsArgs a;
    a.x = view(x, {n, s.dim}), a.rows = view(rows, {n}), a.norm = view(norm, {s.dim});
    a.head = head.on(backend), a.bias = maybe(s.biases, head_bias);
    a.scale = s.residual_scale, a.softcap = s.softcap;
    a.normed = view(normed, {n, s.dim}), a.out = view(logits_out, {n, s.vocab});
    way == Way::fused ? backend.logits(a) : backend.Backend::logits(a);
    return logits_out;
  }
};

using StageFn = Floats (Layer::*)(Way);
constexpr const char* kStageNames[] = {"attn_in", "attn_out", "ffn", "logits"};
constexpr StageFn kStages[] = {&Layer::attn_in, &Layer::attn_out, &Layer::ffn, &Layer::logits};

Shape plain_shape(DType type) {
  Shape s;
  s.wq = s.wv = s.wo = s.gate = s.down = type;
  return s;
}

std::vector<Shape> shapes() {
  std::vector<Shape> list = {plain_shape(DType::F32), plain_shape(DType::F16), Shape{}};
  Shape odd = plain_shape(DType::F32);  // nothing is a multiple of anything
  odd.dim = 34, odd.head_dim = 20, odd.ffn_dim = 77, odd.vocab = 51, odd.n_heads = 3, odd.n_kv_heads = 1;
  odd.biases = odd.head_norms = odd.adjacent = true;
  list.push_back(odd);
  Shape gemma;  // every option
  gemma.biases = gemma.head_norms = gemma.post_norms = true;
  gemma.activation = Activation::gelu_tanh, gemma.softcap = 5, gemma.residual_scale = 0.5f;
  gemma.cache = DType::Q8_0, gemma.head_dim = 32;
  list.push_back(gemma);
  Shape four_bits = plain_shape(DType::F32);
  four_bits.cache = DType::Q4_0, four_bits.head_dim = 32, four_bits.head_norms = true;
  list.push_back(four_bits);
  Shape mixed;  // formats of different forms side by side, as in files of mixed quantisation
  mixed.dim = 256, mixed.ffn_dim = 512, mixed.vocab = 300, mixed.head_dim = 64;
  mixed.wq = DType::Q4_K, mixed.wv = DType::Q6_K, mixed.wo = DType::Q4_0, mixed.gate = DType::Q4_K;
  mixed.down = DType::Q6_K, mixed.cache = DType::BF16;
  list.push_back(mixed);
  mixed.wv = DType::BF16, mixed.gate = DType::F32, mixed.down = DType::BF16, mixed.cache = DType::F32;
  list.push_back(mixed);
  return list;
}

bool is_float(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16; }

/// What rounding the operands may cost (int8 activations: 5e-4 a product, and ffn has two in a row). Random bits as
/// weights are far from zero mean, which costs more.
double bar(const Shape& s) {
  double worst = 1e-8;
  for (DType type : {s.wq, s.wv, s.wo, s.gate, s.down, s.cache}) {
    double bar = 1e-3;
    if (type == DType::F32 || type == DType::F16) bar = 1e-8;
    if (type == DType::BF16) bar = 2e-5;
    if (type == DType::Q4_K || type == DType::Q6_K) bar = 3e-3;
    worst = std::max(worst, bar);
  }
  return worst;
}

TEST_CASE("a fused stage gives the oracle's numbers, and the bits of its primitives where it rounds like them") {
  const auto ref = make_backend("ref");
  int at = 0;
  for (const Shape& shape : shapes()) {
    for (int64_t n : {1, 2, 3, 9, 130}) {
      for (size_t i = 0; i < std::size(kStages); ++i) {
        const StageFn stage = kStages[i];
        const Floats wanted = (Layer(*ref, shape, n).*stage)(Way::fused);
        for (const BackendOptions& options : all_options()) {
          if (++at % 4 != 0 && n > 2) continue;  // enough of the larger ones
          const auto backend = make_backend("cpu", options);
          INFO("stage " << i << " tokens " << n << " dim " << shape.dim << " " << text(options));
          const Floats fused = (Layer(*backend, shape, n).*stage)(Way::fused);
          REQUIRE(nmse(fused, wanted) < bar(shape));
          const Floats composed = (Layer(*backend, shape, n).*stage)(Way::composed);
          // q, k, v and the head take int8 activations in two terms, the primitive matmul in one.
          const bool quantised = !is_float(shape.wq) || (i == 0 && !is_float(shape.wv));
          if ((i == 0 || i == 3) && quantised) {
            REQUIRE(nmse(fused, wanted) <= nmse(composed, wanted));
          } else {
            REQUIRE(same_bits(fused, composed));
          }
        }
      }
    }
  }
}

TEST_CASE("without fusion a stage has the bits of its primitives") {
  for (const Shape& shape : shapes()) {
    for (const int64_t n : {1, 9}) {
      for (size_t i = 0; i < std::size(kStages); ++i) {
        BackendOptions options;
        options.n_threads = 2;
        const auto fused = make_backend("cpu", options);
        options.fusion = false;
        const auto plain = make_backend("cpu", options);
        const Floats composed = (Layer(*fused, shape, n).*kStages[i])(Way::composed);
        CHECK(same_bits((Layer(*plain, shape, n).*kStages[i])(Way::fused), composed));
        options.fusion = true, options.unfused = {kStageNames[i]};  // this one alone
        const auto some = make_backend("cpu", options);
        for (size_t j = 0; j < std::size(kStages); ++j) {
          const Floats wanted = i == j ? composed : (Layer(*fused, shape, n).*kStages[j])(Way::fused);
          CHECK(same_bits((Layer(*some, shape, n).*kStages[j])(Way::fused), wanted));
        }
      }
    }
  }
}

TEST_CASE("a token gets the same bits alone and in any company") {
  for (const Shape& shape : shapes()) {
    for (const BackendOptions& options : all_options()) {
      if (options.n_threads == 3) continue;
      const auto backend = make_backend("cpu", options);
      const int64_t n = 67;
      Layer all(*backend, shape, n);
      std::vector<Layer> parts;
      const int64_t sizes[] = {1, 2, 8, 9, 47};
      int64_t from = 0;
      for (int64_t count : sizes) {
        parts.push_back(all.slice(from, count));
        from += count;
      }
      REQUIRE(from == n);
      const Floats whole_out = all.attn_out();
      all.x = random_floats(n * shape.dim, 23);
      const Floats whole_ffn = all.ffn();
      all.attn_in();
      Floats out, ffn, q;
      for (Layer& part : parts) {
        const Floats x = part.x;
        const Floats a = part.attn_out();
        out.insert(out.end(), a.begin(), a.end());
        part.x = x;
        const Floats b = part.ffn();
        ffn.insert(ffn.end(), b.begin(), b.end());
        part.attn_in();
        q.insert(q.end(), part.q.begin(), part.q.end());
      }
      INFO(text(options) << " dim " << shape.dim);
      CHECK(same_bits(out, whole_out));
      CHECK(same_bits(ffn, whole_ffn));
      CHECK(same_bits(q, all.q));
    }
  }
}

TEST_CASE("nothing is allocated after prepare") {
  Shape shape = shapes().back();
  for (int threads : {1, 3}) {
    const auto backend = make_backend("cpu", {threads, ""});
    Needs needs;
    needs.matrix_formats = {shape.wq, shape.wv, shape.wo, shape.gate, shape.down};
    needs.head_dim = shape.head_dim, needs.k_type = needs.v_type = shape.cache;
    needs.max_tokens = 64, needs.max_seqs = 2, needs.max_context = 4096;
    needs.max_width = std::max(shape.ffn_dim, shape.dim), needs.n_heads = shape.n_heads;
    backend->prepare(needs);
    const int64_t held = backend->stats().bytes;
    CHECK(held > 0);
    for (int64_t n : {1, 64, 5}) {
      Layer layer(*backend, shape, n);
      for (Weight* w : {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.gate, &layer.up, &layer.down, &layer.head}) {
        w->on(*backend);
      }
      const int64_t before = backend->stats().allocations;
      layer.attn_in(), layer.attn_out(), layer.ffn(), layer.logits();
      CHECK(backend->stats().allocations == before + 8);  // on() packs each of the eight weights again
    }
    CHECK(backend->stats().bytes == held);
    CHECK(backend->stats().stages == 12);
  }
}

}  // namespace cpu_stages_test
