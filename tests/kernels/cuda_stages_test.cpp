// The fused stages of the cuda backend, call by call and replayed, against their definition on the oracle.
#include <map>
#include <numeric>

#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

struct Shape {
  int64_t dim = 256, n_heads = 4, n_kv_heads = 2, head_dim = 64, ffn_dim = 352, vocab = 301;
  DType wq = DType::Q8_0, wv = DType::Q8_0, wo = DType::Q8_0, gate = DType::Q8_0, down = DType::Q8_0;
  DType cache = DType::F16;
  bool biases = false, head_norms = false, post_norms = false, adjacent = false;
  bool norms_span = false;  ///< head norms are over all heads of a token
  Activation activation = Activation::silu;
  float softcap = 0, scale = 1;
};

Shape shape_of(DType type) {
  Shape s;
  s.wq = s.wv = s.wo = s.gate = s.down = type;
  return s;
}

std::vector<Shape> shapes() {
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

double stage_bar(const Shape& s) {
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

/// A step's new tokens of a sequence, and its positions with them.
struct Share {
  int32_t n_new, kv_len;
};

/// What attention has besides a Shape.
struct Seen {
  DType values = DType::F16;  ///< in the cache; keys: Shape::cache
  int64_t pairs = 0;          ///< that turn; 0: all
  int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
};

/// attn_in and attention of a layer: what it attended to, queries where somebody asked for them, new rows of the cache.
struct Attended {
  Floats out, q, k_rows, v_rows;
  bool others_kept = true;  ///< nothing but the new rows was written
};

/// After attn_in the ops are: attention alone; a reader of q before it; nothing.
enum class Next { attention, q_then_attention, nothing };

/// The places of the new tokens hold large numbers before: who does not see what was stored there is far off.
Attended attend(const Layer& layer, const Seen& seen, const std::vector<Share>& shares, Backend& b, uint64_t key,
                Next next = Next::attention) {
  const Shape& s = layer.s;
  Ints table, q_start = {0}, kv_len, positions, slots;
  int64_t pages = 1, max_pages = 1;  // page 0 belongs to nobody
  for (const Share& share : shares) max_pages = std::max<int64_t>(max_pages, share.kv_len / kPageTokens + 1);
  for (const Share& share : shares) {
    const int64_t used = (share.kv_len + kPageTokens - 1) / kPageTokens;
    for (int64_t p = 0; p < max_pages; ++p) table.push_back(static_cast<int32_t>(p < used ? pages + used - 1 - p : 0));
    for (int32_t at = share.kv_len - share.n_new; at < share.kv_len; ++at) {
      positions.push_back(at);
      slots.push_back(static_cast<int32_t>((pages + used - 1 - at / kPageTokens) * kPageTokens + at % kPageTokens));
    }
    pages += used;
    q_start.push_back(static_cast<int32_t>(positions.size())), kv_len.push_back(share.kv_len);
  }
  const auto n = static_cast<int64_t>(positions.size()), n_seqs = static_cast<int64_t>(shares.size());
  const int64_t rows = pages * s.n_kv_heads * kPageTokens, pairs = seen.pairs > 0 ? seen.pairs : s.head_dim / 2;
  const auto each_new_row = [&](const auto& f) {
    for (const int32_t slot : slots)
      for (int64_t h = 0; h < s.n_kv_heads; ++h)
        f((slot / kPageTokens * s.n_kv_heads + h) * kPageTokens + slot % kPageTokens);
  };
  const auto cache = [&](DType type, uint32_t seed) {
    Floats values = random_floats(rows * s.head_dim, seed);
    each_new_row([&](int64_t row) { std::fill_n(values.begin() + row * s.head_dim, s.head_dim, 1e3f); });
    Bytes bytes(static_cast<size_t>(tensor_bytes(type, rows, s.head_dim)));
    REQUIRE(encode_row(type, values.data(), bytes.data(), rows * s.head_dim));
    return bytes;
  };
  Bytes k_cache = cache(s.cache, 31), v_cache = cache(seen.values, 32);
  const Bytes k_before = k_cache, v_before = v_cache;
  Side side(b);
  Attended result;
  result.out = poison(n * s.n_heads * s.head_dim), result.q = result.out;
  Floats q = result.out;
  AttnInArgs a;
  a.x = side.in(random_floats(n * s.dim, 23), {n, s.dim}), a.norm = side.in(layer.norm, {s.dim});
  a.normed = side.in(poison(n * s.dim), {n, s.dim});
  if (layer.side_by_side) {
    const std::vector<Tensor> all = side.weights_side_by_side({&layer.wq, &layer.wk, &layer.wv});
    a.wq = all[0], a.wk = all[1], a.wv = all[2];
  } else {
    a.wq = side.weight(layer.wq), a.wk = side.weight(layer.wk), a.wv = side.weight(layer.wv);
  }
  a.bq = side.maybe(s.biases, layer.bq), a.bk = side.maybe(s.biases, layer.bk), a.bv = side.maybe(s.biases, layer.bv);
  RopeStoreArgs& r = a.rope_store;
  const Floats room = poison(n * s.n_kv_heads * s.head_dim);
  r.q = side.out(q, {n, s.n_heads, s.head_dim});
  r.k = side.in(room, {n, s.n_kv_heads, s.head_dim}), r.v = side.in(room, {n, s.n_kv_heads, s.head_dim});
  r.q_norm = side.maybe(s.head_norms, layer.q_norm), r.k_norm = side.maybe(s.head_norms, layer.k_norm);
  r.rope = {side.in(random_floats(1024 * pairs * 2, 22), {1024, pairs, 2}), s.adjacent};
  r.positions = side.in(positions, {n}), r.slots = side.in(slots, {n});
  r.k_cache = side.out(k_cache, CacheShape{s.cache, pages, s.n_kv_heads, s.head_dim});
  r.v_cache = side.out(v_cache, CacheShape{seen.values, pages, s.n_kv_heads, s.head_dim});
  AttentionArgs t;
  t.q = r.q, t.k_cache = r.k_cache, t.v_cache = r.v_cache;
  t.page_table = side.in(table, {n_seqs, max_pages});
  t.q_start = side.in(q_start, {n_seqs + 1}), t.kv_len = side.in(kv_len, {n_seqs});
  t.scale = 0.05f / std::sqrt(static_cast<float>(s.head_dim));  // weights that no rounding of a score turns over
  t.window = seen.window, t.softcap = seen.softcap;
  t.sinks = side.maybe(seen.sinks, random_floats(s.n_heads, 33));
  t.out = side.out(result.out, {n, s.n_heads, s.head_dim});
  Ints all_rows(static_cast<size_t>(n));
  std::iota(all_rows.begin(), all_rows.end(), 0);
  const int64_t width = s.n_heads * s.head_dim;
  const Tensor tokens = side.in(all_rows, {n}), q_matrix(r.q.data, DType::F32, {n, width});
  const Tensor q_read = side.out(result.q, {n, width});
  b.run(key, [&] {
    b.scale_softcap(q_matrix, 1, 0);  // which no program has: the step goes by the launches of its ops
    b.attn_in(a);
    if (next == Next::q_then_attention) b.gather(q_matrix, tokens, q_read);
    if (next != Next::nothing) b.attention(t);
  });
  b.wait();
  side.fetch();
  if (next == Next::nothing) result.q = q;
  const auto look = [&](const Bytes& now, const Bytes& before, DType type, Floats& new_rows) {
    const Floats values = decoded(now, type, s.head_dim);
    Floats was = decoded(before, type, s.head_dim);
    each_new_row([&](int64_t row) {
      const auto at = values.begin() + row * s.head_dim;
      new_rows.insert(new_rows.end(), at, at + s.head_dim);
      std::copy(at, at + s.head_dim, was.begin() + row * s.head_dim);
    });
    result.others_kept = result.others_kept && was == values;
  };
  look(k_cache, k_before, s.cache, result.k_rows), look(v_cache, v_before, seen.values, result.v_rows);
  return result;
}

/// Two backends whose steps are launched op by op, and replayed.
Backend& backend_of_mode(const char* mode) {
  static std::map<std::string, Backend*> made;  // never freed, as gpu()
  Backend*& backend = made[mode];
  if (backend) return *backend;
  BackendOptions options;
  options.mode = mode;
  backend = make_backend("cuda", options).release();
  backend->prepare(needs_of_these_tests());
  return *backend;
}

uint64_t new_key() {
  static uint64_t last = 1000;
  return ++last;
}

/// attn_in and attention in a step, eager and replayed, against the two call by call and against the oracle. Returns
/// how many launches a step saves.
int64_t check_step(const Layer& layer, const Seen& seen, const std::vector<Share>& shares, const std::string& what,
                   Next next = Next::attention) {
  Backend &eager = backend_of_mode("eager"), &graph = backend_of_mode("graph");
  int64_t launches[2];
  const auto counted = [&](uint64_t key) {
    const int64_t before = eager.stats().launches;
    Attended result = attend(layer, seen, shares, eager, key, next);
    launches[key != 0] = eager.stats().launches - before;
    return result;
  };
  const Attended apart = counted(0), step = counted(new_key());
  const Attended replayed = attend(layer, seen, shares, graph, new_key(), next);
  const Attended wanted = attend(layer, seen, shares, ref(), 0, next);
  const double from_apart = 1e-7, k_bar = cache_bar(layer.s.cache), v_bar = cache_bar(seen.values);
  const double from_oracle = stage_bar(layer.s) <= 1e-4 ? 1e-3 : 2e-2;
  for (const Attended* found : {&step, &replayed}) {
    const bool is_step = found == &step;
    INFO(what << (is_step ? ", eager" : ", replayed"));
    CHECK(found->others_kept);
    const auto close = [&](const char* name, const Floats& a, const Floats& b, double bar) {
      const double error = nmse(a, b);
      INFO(name << ": error " << error << ", at most " << bar);
      CHECK(error <= bar);
    };
    close("keys, call by call", found->k_rows, apart.k_rows, k_bar);
    close("values, call by call", found->v_rows, apart.v_rows, v_bar);
    close("keys, oracle", found->k_rows, wanted.k_rows, from_oracle);
    close("values, oracle", found->v_rows, wanted.v_rows, from_oracle);
    // A key that rounds to its other neighbour in the cache moves a weight.
    if (next != Next::nothing) {
      close("attention, call by call", found->out, apart.out, std::max(from_apart, std::max(k_bar, v_bar)));
      // So does one of four bits, but much further, and another activation is enough for it to round that way.
      if (layer.s.cache != DType::Q4_0) close("attention, oracle", found->out, wanted.out, from_oracle);
    }
    if (next != Next::attention) close("queries, call by call", found->q, apart.q, from_apart);
  }
  return launches[0] - launches[1];
}

}  // namespace

TEST_CASE("cuda: stages give the oracle's numbers for every option and number of tokens") {
  if (skipped()) return;
  int at = 0;
  for (const Shape& shape : shapes()) {
    const Layer layer(shape);
    for (const int64_t n : {1, 2, 3, 5, 8, 17, 33, 70, 140}) {
      const std::string what = " of shape " + std::to_string(at) + ", tokens " + std::to_string(n);
      compare(stage_bar(shape), "attn_in" + what, [&](Backend& b) { return layer.attn_in(b, n); });
      compare(stage_bar(shape), "attn_out" + what, [&](Backend& b) { return layer.attn_out(b, n); });
      compare(stage_bar(shape), "ffn" + what, [&](Backend& b) { return layer.ffn(b, n); });
      compare(stage_bar(shape), "logits" + what, [&](Backend& b) { return layer.logits(b, n); });
    }
    ++at;
  }
}

TEST_CASE("cuda: few tokens pass codes from gate and up to down, in every format and from one to another") {
  if (skipped()) return;
  const auto check = [](const Shape& shape, const std::string& name) {
    const Layer layer(shape);
    for (const int64_t n : {3, 5, 8}) {
      const std::string what = " of " + name + ", tokens " + std::to_string(n);
      compare(stage_bar(shape), "attn_in" + what, [&](Backend& b) { return layer.attn_in(b, n); });
      compare(stage_bar(shape), "attn_out" + what, [&](Backend& b) { return layer.attn_out(b, n); });
      compare(stage_bar(shape), "ffn" + what, [&](Backend& b) { return layer.ffn(b, n); });
      compare(stage_bar(shape), "logits" + what, [&](Backend& b) { return layer.logits(b, n); });
    }
  };
  for (const DType type : kWeightFormats) {
    if (is_plain(type)) continue;
    Shape shape = shape_of(type);
    shape.dim = 768, shape.n_heads = 12, shape.ffn_dim = 2304;
    check(shape, format_name(type));
  }
  for (const auto& [first, second] : std::vector<std::pair<DType, DType>>{{DType::Q4_K, DType::Q6_K},
                                                                          {DType::Q5_K, DType::Q6_K},
                                                                          {DType::Q4_K, DType::Q8_0},
                                                                          {DType::Q3_K, DType::Q5_K},
                                                                          {DType::Q3_K, DType::Q4_K},
                                                                          {DType::Q8_0, DType::Q4_0}}) {
    Shape shape = shape_of(first);
    shape.dim = 512, shape.n_heads = 8, shape.ffn_dim = 1024, shape.wv = shape.down = second;
    shape.biases = true, shape.activation = Activation::gelu_tanh;
    check(shape, format_name(first) + " and " + format_name(second));
  }
}

TEST_CASE("cuda: weights that lie side by side are one product, with the same numbers") {
  if (skipped()) return;
  for (const DType type : {DType::F32, DType::F16, DType::BF16, DType::Q8_0}) {
    for (const bool options : {false, true}) {
      Shape shape = shape_of(type);
      shape.biases = shape.post_norms = options;
      shape.activation = options ? Activation::gelu_tanh : Activation::silu;
      Layer together(shape);
      together.side_by_side = true;
      for (const int64_t n : {3, 5, 33, 120}) {  // a cache slot each
        const std::string what =
            " of " + format_name(type) + ", options " + std::to_string(options) + ", tokens " + std::to_string(n);
        compare(stage_bar(shape), "attn_in" + what, [&](Backend& b) { return together.attn_in(b, n); });
        compare(stage_bar(shape), "ffn" + what, [&](Backend& b) { return together.ffn(b, n); });
        const auto launches = [&](const auto& stage) {
          const int64_t before = gpu().stats().launches;
          stage();
          return gpu().stats().launches - before;
        };
        INFO(what);
        const bool one = is_plain(type) && n > 4 && gpu().describe().find("no cuBLASLt") == std::string::npos;
        // norm, one product, rope and store. (Apart they may lie side by side too, by chance.)
        if (one) CHECK(launches([&] { together.attn_in(gpu(), n); }) == 3);
      }
    }
  }
}

TEST_CASE("cuda: attention of one or two tokens has two launches before it and one behind") {
  if (skipped()) return;
  const auto launches = [](const auto& stage) {
    const int64_t before = gpu().stats().launches;
    stage();
    return gpu().stats().launches - before;
  };
  for (const DType type : {DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0})
    for (const bool norms_span : {false, true})
      for (const int64_t n : {1, 2}) {
        Shape shape = shape_of(type);
        shape.biases = shape.head_norms = true, shape.norms_span = norms_span;
        const Layer layer(shape);
        INFO(format_name(type) << ", norms over all heads " << norms_span << ", tokens " << n);
        CHECK(launches([&] { layer.attn_in(gpu(), n); }) == 2);
        CHECK(launches([&] { layer.attn_out(gpu(), n); }) == 1);
      }
  Shape two;  // formats that have a kernel together
  two.wq = DType::Q4_K, two.wv = DType::Q6_K;
  CHECK(launches([&] { Layer(two).attn_in(gpu(), 1); }) == 2);
}

TEST_CASE("cuda: stages that are not fused give the oracle's numbers too") {
  if (skipped()) return;
  BackendOptions options;
  options.fusion = false;
  const auto plain = make_backend("cuda", options);
  plain->prepare(needs_of_these_tests());
  CHECK(plain->describe().find(", no fusion") != std::string::npos);
  int at = 0;
  for (const Shape& shape : shapes()) {
    const Layer layer(shape);
    for (const int64_t n : {1, 5, 70}) {
      const std::string what = " of shape " + std::to_string(at) + ", tokens " + std::to_string(n);
      const auto check = [&](const char* stage, const auto& run) {
        const double error = nmse(run(*plain), run(ref()));
        INFO(stage << what << ": error " << error);
        CHECK(error <= stage_bar(shape));
      };
      check("attn_in", [&](Backend& b) { return layer.attn_in(b, n); });
      check("attn_out", [&](Backend& b) { return layer.attn_out(b, n); });
      check("ffn", [&](Backend& b) { return layer.ffn(b, n); });
      check("logits", [&](Backend& b) { return layer.logits(b, n); });
    }
    ++at;
  }
}

TEST_CASE("cuda: stages in fp8 give the oracle's numbers but for three bits of fraction") {
  if (skipped()) return;
  BackendOptions options;
  options.act = "fp8";
  const auto fp8 = make_backend("cuda", options);
  Needs needs = needs_of_these_tests();
  needs.max_tokens = 300;
  try {
    fp8->prepare(needs);
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("fp8 cannot be used") != std::string::npos);
    return;
  }
  // cuda_e4m3_test.cpp says what a product costs; the one after the gate meets what two others have left. With 16 bits
  // an error would be 1e-5 or less: what is as exact as that did not go by e4m3.
  constexpr double kProduct = 3e-3, kFfn = 1e-2, kLeast = 5e-5;
  int at = 0;
  const auto shapes_of_8 = [] {
    std::vector<Shape> list;
    for (const DType type : {DType::Q8_0, DType::Q4_0, DType::MXFP4}) {
      list.push_back(shape_of(type));
      list.push_back(shape_of(type));
      Shape& s = list.back();  // every option
      s.biases = s.head_norms = s.post_norms = s.adjacent = true;
      s.activation = Activation::gelu_tanh, s.softcap = 5, s.scale = 0.5f;
      list.push_back(shape_of(type));
      list.back().head_norms = list.back().norms_span = true;
    }
    Shape mixed;
    mixed.ffn_dim = 512, mixed.wq = DType::Q4_K, mixed.wv = DType::Q6_K, mixed.wo = DType::Q4_0;
    mixed.gate = DType::Q4_K, mixed.down = DType::Q6_K;
    list.push_back(mixed);
    mixed.wv = DType::F16;  // not as the two beside it
    list.push_back(mixed);
    for (Shape& s : list) s.vocab = 304;  // a multiple of 16: it is not the size that keeps the head out
    return list;
  };
  for (const Shape& shape : shapes_of_8()) {
    const Layer layer(shape);
    for (const int64_t n : {129, 140}) {
      const auto check = [&](const char* stage, double bar, const auto& run) {
        const double error = nmse(run(*fp8), run(ref()));
        INFO(stage << " of shape " << at << ", tokens " << n << ": error " << error);
        CHECK(error <= bar);
        CHECK((error >= kLeast) == (stage != std::string("logits")));
      };
      check("attn_in", kProduct, [&](Backend& b) { return layer.attn_in(b, n); });
      check("attn_out", kProduct, [&](Backend& b) { return layer.attn_out(b, n); });
      check("ffn", kFfn, [&](Backend& b) { return layer.ffn(b, n); });
      check("logits", kLeast, [&](Backend& b) { return layer.logits(b, n); });  // the head is left alone
    }
    ++at;
  }
}

TEST_CASE("cuda: a step that is replayed computes what it computes call by call") {
  if (skipped()) return;
  BackendOptions options;
  options.mode = "graph";
  const auto graph = make_backend("cuda", options);
  graph->prepare(needs_of_these_tests());
  for (const int64_t n : {5, 20}) {
    Floats results[2];
    for (int eager = 0; eager < 2; ++eager) {
      const Layer layer(shape_of(DType::Q8_0));
      Side side(*graph);
      Floats x = random_floats(n * layer.s.dim, 23);
      const int64_t width = layer.s.n_heads * layer.s.head_dim;
      const AttnOutArgs args{
          side.in(random_floats(n * width, 24), {n, width}), side.weight(layer.wo), {}, layer.add_args(side, x, n)};
      for (int step = 0; step < 4; ++step) {
        graph->run(eager ? 0 : static_cast<uint64_t>(n), [&] { graph->attn_out(args); });
      }
      graph->wait();
      side.fetch();
      results[eager] = x;
    }
    CHECK(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) == 0);
  }
}

TEST_CASE("cuda: a replayed ffn of few rows computes what it computes call by call") {
  if (skipped()) return;
  BackendOptions options;
  options.mode = "graph";
  const auto graph = make_backend("cuda", options);
  graph->prepare(needs_of_these_tests());
  Shape shape = shape_of(DType::Q4_K);
  shape.ffn_dim = 2304, shape.down = DType::Q6_K;
  const Layer layer(shape);
  for (const int64_t n : {3, 8, 16, 40}) {
    Floats results[2];
    for (int eager = 0; eager < 2; ++eager) {
      Side side(*graph);
      Floats x = random_floats(n * shape.dim, 23);
      const FfnArgs args = layer.ffn_args(side, x, n);
      for (int step = 0; step < 20; ++step) {
        graph->run(eager ? 0 : static_cast<uint64_t>(n), [&] { graph->ffn(args); });
      }
      graph->wait();
      side.fetch();
      results[eager] = x;
    }
    CHECK(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) == 0);
  }
}

TEST_CASE("cuda: attention of a step takes norms, rotation and the new keys and values along") {
  if (skipped()) return;
  const std::vector<Share> all = {{1, 1}, {1, 33}, {1, 32}, {1, 700}, {1, 31}, {1, 257}, {1, 64}, {1, 40}};
  int at = 0;
  for (const Shape& shape : shapes()) {
    Layer layer(shape);
    layer.side_by_side = shape.wq == shape.wv && is_plain(shape.wq);
    for (const size_t n : {1, 2, 5, 8}) {
      const std::vector<Share> shares(all.end() - static_cast<std::ptrdiff_t>(n), all.end());
      Seen seen;
      seen.values = shape.cache;
      const std::string what = "step of shape " + std::to_string(at) + ", tokens " + std::to_string(n);
      const int64_t saved = check_step(layer, seen, shares, what);
      INFO(what);
      CHECK(saved >= 0);
      CHECK(saved <= 1);
      if (shape.dim == 256 && shape.wq == shape.wv && (n <= 2 || !is_plain(shape.wq))) CHECK(saved == 1);
    }
    ++at;
  }
}

TEST_CASE("cuda: attention of a step prepares heads of all sizes for all caches, windows and splits") {
  if (skipped()) return;
  const std::vector<Share> shares = {{1, 900}, {1, 1}, {1, 520}, {1, 33}, {1, 65}};
  int64_t at = 0;
  for (const int64_t head_dim : kHeadDims)
    for (const DType k : kCacheTypes)
      for (const DType v : {k, DType::F16, DType::Q4_0}) {
        if (!fits(k, head_dim) || !fits(v, head_dim)) continue;
        for (const bool spans : {false, true}) {
          Shape shape = shape_of(DType::Q8_0);
          shape.wo = DType::F16;  // not looked at here, and its rows may be no multiple of a block
          shape.n_kv_heads = 1 + at % 2, shape.n_heads = shape.n_kv_heads * (at % 7 == 0 ? 9 : 1 + at % 4);
          shape.head_dim = head_dim, shape.cache = k;
          shape.biases = at % 3 == 1, shape.adjacent = at % 2 == 1;
          shape.head_norms = spans || at % 4 == 0, shape.norms_span = spans;
          if (shape.n_heads * head_dim > kMostWidth) shape.n_heads = shape.n_kv_heads;
          Seen seen;
          seen.values = v, seen.pairs = at % 5 == 2 ? head_dim / 4 : 0;
          seen.window = at % 6 == 3 ? 40 : at % 6 == 5 ? 1 : 0, seen.softcap = at % 5 == 1 ? 3 : 0;
          seen.sinks = at % 3 == 0;
          const Layer layer(shape);
          const size_t n = at % 2 == 0 ? 1 : shares.size();  // few blocks of 16 warps; more of them
          check_step(layer, seen, {shares.begin(), shares.begin() + static_cast<std::ptrdiff_t>(n)},
                     "step " + std::to_string(at) + ", keys " + format_name(k) + ", values " + format_name(v) +
                         ", head " + std::to_string(head_dim));
          ++at;
        }
      }
  // So many that blocks have four warps.
  Shape many = shape_of(DType::Q8_0);
  many.n_heads = 8, many.n_kv_heads = 8, many.head_norms = true;
  std::vector<Share> forty;
  for (int i = 0; i < 40; ++i) forty.push_back({1, 1 + i * 17 % 350});
  for (const DType type : kCacheTypes) {
    Seen seen;
    seen.values = many.cache = type;
    check_step(Layer(many), seen, forty, "step of 40 sequences, " + format_name(type));
  }
}

TEST_CASE("cuda: what attn_in leaves to attention is done once, whatever follows") {
  if (skipped()) return;
  Shape shape = shape_of(DType::Q8_0);
  shape.biases = shape.head_norms = true;
  const Layer layer(shape);
  const Seen seen;
  const std::vector<Share> one_each = {{1, 40}, {1, 5}, {1, 300}, {1, 33}, {1, 1}};
  CHECK(check_step(layer, seen, one_each, "attention") == 1);
  CHECK(check_step(layer, seen, one_each, "somebody reads q", Next::q_then_attention) == 0);
  CHECK(check_step(layer, seen, one_each, "nothing follows", Next::nothing) == 0);
  CHECK(check_step(layer, seen, {{5, 40}, {1, 33}}, "a prompt") == 0);
  CHECK(check_step(layer, seen, {{2, 40}, {0, 7}, {1, 33}, {3, 290}, {0, 1}, {0, 1}}, "several of one") == 1);
}
