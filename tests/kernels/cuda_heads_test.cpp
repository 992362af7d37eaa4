// Attention of a step that takes along what comes before it (head norms, rotation, the write of k and v), eager and
// replayed, against the two call by call and against the oracle.
#include <map>
#include <numeric>

#include "tests/kernels/cuda_layer.h"

namespace cuda_heads_test {
using namespace infer;
using namespace infer::cuda_test;
using namespace infer::cuda_layer_test;

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

}  // namespace cuda_heads_test
