// A layer of random weights in many shapes, whose stages tests run on the cuda backend and on the oracle.
#pragma once

#include "tests/kernels/cuda_side.h"

namespace infer::cuda_layer_test {
using namespace cuda_test;

struct Shape {
  int64_t dim = 256, n_heads = 4, n_kv_heads = 2, head_dim = 64, ffn_dim = 352, vocab = 301;
  DType wq = DType::Q8_0, wv = DType::Q8_0, wo = DType::Q8_0, gate = DType::Q8_0, down = DType::Q8_0;
  DType cache = DType::F16;
  bool biases = false, head_norms = false, post_norms = false, adjacent = false;
  bool norms_span = false;  ///< head norms are over all heads of a token
  Activation activation = Activation::silu;
  float softcap = 0, scale = 1;
};

inline Shape shape_of(DType type) {
  Shape s;
  s.wq = s.wv = s.wo = s.gate = s.down = type;
  return s;
}

inline std::vector<Shape> shapes() {
  std::vector<Shape> list;
  for (const DType type : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0}) {
    list.push_back(shape_of(type));
    list.push_back(shape_of(type));
    Shape& s = list.back();  // every option
    s.biases = s.head_norms = s.post_norms = s.adjacent = true;
    s.activation = Activation::gelu_tanh, s.softcap = 5, s.scale = 0.5f, s.cache = DType::Q8_0;
    list.push_back(shape_of(type));
    list.back().biases = true, list.back().cache = DType::F32;
    list.push_back(shape_of(type));
    list.back().post_norms = true, list.back().cache = DType::BF16;
    list.push_back(shape_of(type));
    list.back().adjacent = true, list.back().cache = DType::Q4_0;
    list.push_back(shape_of(type));
    list.back().head_norms = list.back().norms_span = true, list.back().cache = DType::F16;
  }
  Shape odd = shape_of(DType::F16);  // rows that are no multiple of 16 bytes
  odd.dim = 36, odd.head_dim = 32, odd.ffn_dim = 77, odd.vocab = 51, odd.n_heads = 3, odd.n_kv_heads = 1;
  list.push_back(odd);
  Shape mixed;  // formats side by side, as in files of mixed quantisation
  mixed.ffn_dim = 512, mixed.wq = DType::Q4_K, mixed.wv = DType::Q6_K, mixed.wo = DType::Q4_0;
  mixed.gate = DType::Q4_K, mixed.down = DType::Q6_K, mixed.head_norms = true;
  list.push_back(mixed);
  mixed.norms_span = mixed.biases = true;
  list.push_back(mixed);
  mixed.wv = DType::F16, mixed.gate = DType::F32, mixed.down = DType::BF16;
  list.push_back(mixed);
  return list;
}

inline double stage_bar(const Shape& s) {
  double worst = 1e-8;
  for (const DType type : {s.wq, s.wv, s.wo, s.gate, s.down})
    worst = std::max(worst, type == DType::F32 ? 1e-8 : is_plain(type) ? 1e-4 : 1e-3);
  return std::max(worst, 10 * cache_bar(s.cache));
}

/// The weights and inputs of a layer for up to `n` tokens, the same for every backend.
struct Layer {
  Shape s;
  Weight wq, wk, wv, wo, gate, up, down, head;
  Floats norm, bq, bk, bv, bo, b_gate, b_up, b_down, q_norm, k_norm, post, head_bias, cos_sin;
  int64_t pages = 6;
  bool side_by_side = false;  ///< q, k, v and gate, up

  explicit Layer(const Shape& shape)
      : s(shape),
        wq(s.wq, s.n_heads * s.head_dim, s.dim, 1),
        wk(s.wq, s.n_kv_heads * s.head_dim, s.dim, 2),
        wv(s.wv, s.n_kv_heads * s.head_dim, s.dim, 3),
        wo(s.wo, s.dim, s.n_heads * s.head_dim, 4),
        gate(s.gate, s.ffn_dim, s.dim, 5),
        up(s.gate, s.ffn_dim, s.dim, 6),
        down(s.down, s.dim, s.ffn_dim, 7),
        head(s.wq, s.vocab, s.dim, 8),
        norm(random_floats(s.dim, 10)),
        bq(random_floats(s.n_heads * s.head_dim, 12)),
        bk(random_floats(s.n_kv_heads * s.head_dim, 13)),
        bv(random_floats(s.n_kv_heads * s.head_dim, 14)),
        bo(random_floats(s.dim, 15)),
        b_gate(random_floats(s.ffn_dim, 16)),
        b_up(random_floats(s.ffn_dim, 17)),
        b_down(random_floats(s.dim, 18)),
        q_norm(random_floats(s.head_dim * (s.norms_span ? s.n_heads : 1), 19)),
        k_norm(random_floats(s.head_dim * (s.norms_span ? s.n_kv_heads : 1), 20)),
        post(random_floats(s.dim, 11)),
        head_bias(random_floats(s.vocab, 21)),
        cos_sin(random_floats(200 * s.head_dim, 22)) {}

  Floats attn_in(Backend& b, int64_t n) const {
    Side side(b);
    Floats q = poison(n * s.n_heads * s.head_dim), k = poison(n * s.n_kv_heads * s.head_dim), v = k;
    Bytes k_cache = random_cache(s.cache, pages * s.n_kv_heads * kPageTokens, s.head_dim, 7), v_cache = k_cache;
    Ints positions, slots;
    for (int64_t t = 0; t < n; ++t) {
      positions.push_back(static_cast<int32_t>(t + 3));
      slots.push_back(static_cast<int32_t>(t * 7 % (pages * kPageTokens)));
    }
    AttnInArgs a;
    a.x = side.in(random_floats(n * s.dim, 23), {n, s.dim}), a.norm = side.in(norm, {s.dim});
    a.normed = side.in(poison(n * s.dim), {n, s.dim});
    if (side_by_side) {
      const std::vector<Tensor> all = side.weights_side_by_side({&wq, &wk, &wv});
      a.wq = all[0], a.wk = all[1], a.wv = all[2];
    } else {
      a.wq = side.weight(wq), a.wk = side.weight(wk), a.wv = side.weight(wv);
    }
    a.bq = side.maybe(s.biases, bq), a.bk = side.maybe(s.biases, bk), a.bv = side.maybe(s.biases, bv);
    RopeStoreArgs& r = a.rope_store;
    r.q = side.out(q, {n, s.n_heads, s.head_dim});
    r.k = side.in(k, {n, s.n_kv_heads, s.head_dim}), r.v = side.in(v, {n, s.n_kv_heads, s.head_dim});
    r.q_norm = side.maybe(s.head_norms, q_norm), r.k_norm = side.maybe(s.head_norms, k_norm);
    r.rope = {side.in(cos_sin, {200, s.head_dim / 2, 2}), s.adjacent};
    r.positions = side.in(positions, {n}), r.slots = side.in(slots, {n});
    r.k_cache = side.out(k_cache, CacheShape{s.cache, pages, s.n_kv_heads, s.head_dim});
    r.v_cache = side.out(v_cache, CacheShape{s.cache, pages, s.n_kv_heads, s.head_dim});
    b.attn_in(a);
    side.fetch();
    append(q, decoded(k_cache, s.cache, s.head_dim));
    append(q, decoded(v_cache, s.cache, s.head_dim));
    return q;
  }
  AddArgs add_args(Side& side, Floats& x, int64_t n) const {
    AddArgs a;
    a.x = side.out(x, {n, s.dim}), a.branch = side.in(poison(n * s.dim), {n, s.dim});
    a.norm = side.maybe(s.post_norms, post), a.scale = s.scale;
    return a;
  }
  Floats attn_out(Backend& b, int64_t n) const {
    Side side(b);
    Floats x = random_floats(n * s.dim, 23);
    const int64_t width = s.n_heads * s.head_dim;
    b.attn_out({side.in(random_floats(n * width, 24), {n, width}), side.weight(wo), side.maybe(s.biases, bo),
                add_args(side, x, n)});
    side.fetch();
    return x;
  }
  FfnArgs ffn_args(Side& side, Floats& x, int64_t n) const {
    FfnArgs a;
    a.norm = side.in(norm, {s.dim}), a.activation = s.activation, a.add = add_args(side, x, n);
    if (side_by_side) {
      const std::vector<Tensor> both = side.weights_side_by_side({&gate, &up});
      a.w_gate = both[0], a.w_up = both[1];
    } else {
      a.w_gate = side.weight(gate), a.w_up = side.weight(up);
    }
    a.w_down = side.weight(down);
    a.b_gate = side.maybe(s.biases, b_gate), a.b_up = side.maybe(s.biases, b_up);
    a.b_down = side.maybe(s.biases, b_down);
    a.normed = side.in(poison(n * s.dim), {n, s.dim});
    a.gate = side.in(poison(n * s.ffn_dim), {n, s.ffn_dim}), a.up = side.in(poison(n * s.ffn_dim), {n, s.ffn_dim});
    return a;
  }
  Floats ffn(Backend& b, int64_t n) const {
    Side side(b);
    Floats x = random_floats(n * s.dim, 23);
    b.ffn(ffn_args(side, x, n));
    side.fetch();
    return x;
  }
  Floats logits(Backend& b, int64_t n) const {
    Side side(b);
    Floats out = poison(n * s.vocab);
    Ints rows;
    for (int64_t t = 0; t < n; ++t) rows.push_back(static_cast<int32_t>(n + 2 - t));  // some rows are not wanted
    LogitsArgs a;
    a.x = side.in(random_floats((n + 3) * s.dim, 25), {n + 3, s.dim}), a.rows = side.in(rows, {n});
    a.norm = side.in(norm, {s.dim}), a.head = side.weight(head), a.bias = side.maybe(s.biases, head_bias);
    a.scale = s.scale, a.softcap = s.softcap;
    a.normed = side.in(poison(n * s.dim), {n, s.dim}), a.out = side.out(out, {n, s.vocab});
    b.logits(a);
    side.fetch();
    return out;
  }
};

}  // namespace infer::cuda_layer_test
