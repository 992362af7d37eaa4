// Ops of one layer with a model's own weights and numbered random inputs; see self_test.h.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "models/arch.h"
#include "models/decoder.h"
#include "models/stack.h"
#include "quant/formats.h"
#include "runtime/self_test.h"

namespace infer::self_testing {
namespace {

constexpr int64_t kTableRows = 512, kFirstPosition = 100;
constexpr int64_t kStorePages = 8;  // that attn_in writes to
constexpr float kResidual = 0.1f;   // of the residual stream: branches are to show beside it
constexpr int64_t kShortHistory = 224, kLongHistory = 4096;

/// Row `token` of an input: normal numbers that depend on nothing else.
void fill_row(float* row, int64_t n, int token, uint32_t seed, float scale) {
  std::mt19937 random(seed * 7919u + static_cast<uint32_t>(token));
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < n; ++i) row[i] = normal(random);
}

Floats input(std::span<const int> tokens, int64_t width, uint32_t seed, float scale = 1) {
  Floats out(tokens.size() * static_cast<size_t>(width));
  for (size_t i = 0; i < tokens.size(); ++i)
    fill_row(out.data() + static_cast<int64_t>(i) * width, width, tokens[i], seed, scale);
  return out;
}

int64_t rows_of(std::span<const int> tokens) { return static_cast<int64_t>(tokens.size()); }

}  // namespace

/// Tensors of one call, in the backend's memory until it ends. What is computed starts as NaN.
class Subject::Desk {
 public:
  explicit Desk(Backend& backend) : backend_(backend) {}

  Tensor put(const Floats& values, std::initializer_list<int64_t> shape) {
    return Tensor(copy(values.data(), values.size() * sizeof(float)), DType::F32, shape);
  }
  Tensor put(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
    return Tensor(copy(values.data(), values.size() * sizeof(int32_t)), DType::I32, shape);
  }
  Tensor room(std::initializer_list<int64_t> shape) {
    const int64_t n = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    return put(Floats(static_cast<size_t>(n), std::nanf("")), shape);
  }
  Part result(const Tensor& t) {
    Part part{t.n_elements() / t.rows(), Floats(static_cast<size_t>(t.n_elements()))};
    backend_.download(part.values.data(), t.data, part.values.size() * sizeof(float));
    return part;
  }

 private:
  void* copy(const void* data, size_t bytes) {
    kept_.push_back(backend_.allocate(bytes));
    backend_.upload(kept_.back().get(), data, bytes);
    return kept_.back().get();
  }
  Backend& backend_;
  std::vector<Buffer> kept_;
};

Subject::Subject(const Checkpoint& checkpoint, const Extract& extract, Backend& backend)
    : extract_(extract), backend_(backend) {
  pack(checkpoint);
  for (const RopeConfig& rope : config().ropes) {
    Floats table(static_cast<size_t>(kTableRows * rope.dim));
    fill_rope_table(rope, kTableRows, 0, kTableRows, table.data());
    buffers_.push_back(backend.allocate(table.size() * sizeof(float)));
    backend.upload(buffers_.back().get(), table.data(), table.size() * sizeof(float));
    ropes_.push_back(Tensor(buffers_.back().get(), DType::F32, {kTableRows, rope.dim / 2, 2}));
  }
  fill_caches();
}

void Subject::pack(const Checkpoint& checkpoint) {
  const Config whole = read_config(checkpoint);
  std::vector<Buffer> packed;
  Weights all;
  for (const BoundTensor& t : bind_weights(checkpoint, whole, all)) {
    const auto at = reinterpret_cast<uintptr_t>(t.target), begin = reinterpret_cast<uintptr_t>(all.layers.data());
    if (at >= begin && at < begin + all.layers.size() * sizeof(LayerWeights)) {
      const auto layer = static_cast<int64_t>((at - begin) / sizeof(LayerWeights));
      if (std::find(extract_.layers.begin(), extract_.layers.end(), layer) == extract_.layers.end()) continue;
    }
    const size_t bytes = packed_bytes(t, backend_);
    packed.push_back(bytes > 0 ? backend_.allocate(bytes) : nullptr);
    *t.target = pack_tensor(t, backend_, packed.back().get());
  }
  backend_.wait();
  weights_ = all;
  weights_.buffers = std::move(packed);
  weights_.layers.clear();
  for (const int64_t layer : extract_.layers) weights_.layers.push_back(all.layers[static_cast<size_t>(layer)]);
}

/// Positions before token 0: enough for a window to cut something off.
int64_t Subject::history(size_t layer) const {
  const int64_t window = config().layers[layer].window;
  return window > 0 ? std::min(window, kLongHistory) + kPageTokens : kShortHistory;
}

void Subject::fill_caches() {
  const Config& c = config();
  int64_t n = 0;
  for (size_t i = 0; i < c.layers.size(); ++i) n = std::max(n, history(i) + kMostTokens);
  pages_.resize(static_cast<size_t>((n + kPageTokens - 1) / kPageTokens));
  std::iota(pages_.begin(), pages_.end(), 0);
  std::shuffle(pages_.begin(), pages_.end(), std::mt19937(1));
  const auto n_pages = static_cast<int64_t>(pages_.size());
  const auto cache = [&](DType type) {
    const int64_t bytes = tensor_bytes(type, n_pages * c.n_kv_heads * kPageTokens, c.head_dim);
    buffers_.push_back(backend_.allocate(static_cast<size_t>(bytes)));
    return Tensor(buffers_.back().get(), type, {n_pages, c.n_kv_heads, kPageTokens, c.head_dim});
  };
  k_cache_ = cache(extract_.k_type), v_cache_ = cache(extract_.v_type);
  for (int64_t from = 0; from < n; from += kMostTokens) {
    Desk desk(backend_);
    std::vector<int> tokens;
    std::vector<int32_t> slots, positions;
    for (int64_t p = from; p < std::min(n, from + kMostTokens); ++p) {
      tokens.push_back(static_cast<int>(p));
      positions.push_back(0);
      slots.push_back(
          static_cast<int32_t>(pages_[static_cast<size_t>(p / kPageTokens)] * kPageTokens + p % kPageTokens));
    }
    const int64_t m = rows_of(tokens), kv = c.n_kv_heads * c.head_dim;
    RopeStoreArgs args;
    args.q = desk.room({m, c.n_heads, c.head_dim});
    args.k = desk.put(input(tokens, kv, 1), {m, c.n_kv_heads, c.head_dim});
    args.v = desk.put(input(tokens, kv, 2), {m, c.n_kv_heads, c.head_dim});
    args.positions = desk.put(positions, {m}), args.slots = desk.put(slots, {m});
    args.k_cache = k_cache_, args.v_cache = v_cache_;
    backend_.rope_store(args);
    backend_.wait();
  }
}

Parts Subject::embed(std::span<const int> tokens) const {
  Desk desk(backend_);
  std::vector<int32_t> ids;
  for (const int t : tokens) ids.push_back(static_cast<int32_t>((int64_t{t} * 7919 + 13) % config().vocab));
  const int64_t n = rows_of(tokens);
  const Tensor out = desk.room({n, config().dim});
  backend_.embed({weights_.embed, desk.put(ids, {n}), config().embed_scale, out});
  return {desk.result(out)};
}

Parts Subject::attn_in(size_t layer, std::span<const int> tokens) const {
  const Config& c = config();
  const LayerWeights& w = weights_.layers[layer];
  const int64_t n = rows_of(tokens);
  const int rope = c.layers[layer].rope;
  Desk desk(backend_);
  std::vector<int32_t> positions, slots;
  for (const int t : tokens) {
    positions.push_back(static_cast<int32_t>(kFirstPosition + t));
    slots.push_back(static_cast<int32_t>(int64_t{t} * 3 % (kStorePages * kPageTokens)));
  }
  AttnInArgs a;
  a.x = desk.put(input(tokens, c.dim, 3), {n, c.dim});
  a.norm = w.attn_norm, a.eps = c.norm_eps;
  a.wq = w.wq, a.wk = w.wk, a.wv = w.wv, a.bq = w.bq, a.bk = w.bk, a.bv = w.bv;
  a.normed = desk.room({n, c.dim});
  RopeStoreArgs& r = a.rope_store;
  r.q = desk.room({n, c.n_heads, c.head_dim});
  r.k = desk.room({n, c.n_kv_heads, c.head_dim}), r.v = desk.room({n, c.n_kv_heads, c.head_dim});
  r.q_norm = w.q_norm, r.k_norm = w.k_norm, r.eps = c.norm_eps;
  if (rope >= 0) r.rope = {ropes_[static_cast<size_t>(rope)], c.ropes[static_cast<size_t>(rope)].adjacent};
  r.positions = desk.put(positions, {n}), r.slots = desk.put(slots, {n});
  const auto cache = [&](DType type, Buffer& memory) {
    const int64_t rows = kStorePages * c.n_kv_heads * kPageTokens;
    memory = backend_.allocate(static_cast<size_t>(tensor_bytes(type, rows, c.head_dim)));
    return Tensor(memory.get(), type, {kStorePages, c.n_kv_heads, kPageTokens, c.head_dim});
  };
  Buffer k_memory, v_memory;
  r.k_cache = cache(extract_.k_type, k_memory), r.v_cache = cache(extract_.v_type, v_memory);
  backend_.attn_in(a);
  Parts parts = {desk.result(r.q)};
  for (const Tensor& t : {r.k_cache, r.v_cache}) {
    if (find_format(t.dtype)->block > 1) continue;  // backends may order blocks as they like; attention reads them
    const int64_t row = row_bytes(t.dtype, c.head_dim);
    std::vector<char> bytes(static_cast<size_t>(row * t.n_elements() / c.head_dim));
    backend_.download(bytes.data(), t.data, bytes.size());
    Part part{c.n_kv_heads * c.head_dim, Floats(static_cast<size_t>(n * c.n_kv_heads * c.head_dim))};
    for (int64_t i = 0; i < n * c.n_kv_heads; ++i) {
      const int64_t slot = slots[static_cast<size_t>(i / c.n_kv_heads)], head = i % c.n_kv_heads;
      const int64_t at = (slot / kPageTokens * c.n_kv_heads + head) * kPageTokens + slot % kPageTokens;
      decode_row(t.dtype, bytes.data() + at * row, part.values.data() + i * c.head_dim, c.head_dim);
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

Parts Subject::attention(size_t layer, std::span<const int> tokens, bool prompt, bool lengths) const {
  const Config& c = config();
  const int64_t n = rows_of(tokens), n_seqs = prompt ? 1 : n, n_pages = static_cast<int64_t>(pages_.size());
  Desk desk(backend_);
  std::vector<int32_t> table, q_start = {0}, kv_len;
  for (int64_t s = 0; s < n_seqs; ++s) {
    const int64_t token = prompt ? n - 1 : tokens[static_cast<size_t>(s)], all = history(layer) + token + 1;
    table.insert(table.end(), pages_.begin(), pages_.end());
    q_start.push_back(static_cast<int32_t>(prompt ? n : s + 1));
    kv_len.push_back(static_cast<int32_t>(lengths ? 1 + token * 997 % all : all));
  }
  AttentionArgs a;
  a.q = desk.put(input(tokens, c.n_heads * c.head_dim, 4), {n, c.n_heads, c.head_dim});
  a.k_cache = k_cache_, a.v_cache = v_cache_;
  a.page_table = desk.put(table, {n_seqs, n_pages});
  a.q_start = desk.put(q_start, {n_seqs + 1}), a.kv_len = desk.put(kv_len, {n_seqs});
  a.scale = c.attn_scale, a.window = c.layers[layer].window, a.softcap = c.attn_softcap;
  a.sinks = weights_.layers[layer].attn_sinks;
  a.out = desk.room({n, c.n_heads, c.head_dim});
  backend_.attention(a);
  return {desk.result(a.out)};
}

AddArgs Subject::add_args(Desk& desk, const Tensor& x, const Tensor& post_norm) const {
  return {x, desk.room({x.rows(), config().dim}), post_norm, config().norm_eps, config().residual_scale};
}

Parts Subject::attn_out(size_t layer, std::span<const int> tokens) const {
  const LayerWeights& w = weights_.layers[layer];
  const int64_t n = rows_of(tokens), width = config().n_heads * config().head_dim;
  Desk desk(backend_);
  const Floats before = input(tokens, config().dim, 5, kResidual);
  const Tensor x = desk.put(before, {n, config().dim});
  backend_.attn_out({desk.put(input(tokens, width, 6), {n, width}), w.wo, w.bo, add_args(desk, x, w.attn_post_norm)});
  Part out = desk.result(x);
  for (size_t i = 0; i < before.size(); ++i) out.values[i] -= before[i];  // the branch alone
  return {out};
}

Parts Subject::ffn(size_t layer, std::span<const int> tokens) const {
  const Config& c = config();
  const LayerWeights& w = weights_.layers[layer];
  const int64_t n = rows_of(tokens);
  Desk desk(backend_);
  const Floats before = input(tokens, c.dim, 7, kResidual);
  FfnArgs a;
  a.norm = w.ffn_norm, a.eps = c.norm_eps;
  a.w_gate = w.w_gate, a.w_up = w.w_up, a.w_down = w.w_down;
  a.b_gate = w.b_gate, a.b_up = w.b_up, a.b_down = w.b_down;
  a.activation = c.activation;
  a.add = add_args(desk, desk.put(before, {n, c.dim}), w.ffn_post_norm);
  a.normed = desk.room({n, c.dim});
  a.gate = desk.room({n, c.ffn_dim}), a.up = desk.room({n, c.ffn_dim});
  backend_.ffn(a);
  Part out = desk.result(a.add.x);
  for (size_t i = 0; i < before.size(); ++i) out.values[i] -= before[i];
  return {out};
}

Parts Subject::moe_ffn(size_t layer, std::span<const int> tokens) const {
  const Config& c = config();
  const ExpertsConfig& e = c.experts;
  const LayerWeights& w = weights_.layers[layer];
  const int64_t n = rows_of(tokens);
  Desk desk(backend_);
  const Floats before = input(tokens, c.dim, 7, kResidual);
  MoeFfnArgs a = moe_weights(c, w);
  a.add = add_args(desk, desk.put(before, {n, c.dim}), w.ffn_post_norm);
  a.normed = desk.room({n, c.dim});
  a.router = desk.room({n, e.n_experts}), a.weights = desk.room({n, e.n_active});
  a.ids = desk.put(std::vector<int32_t>(static_cast<size_t>(n * e.n_active), -1), {n, e.n_active});
  a.order = desk.put(std::vector<int32_t>(static_cast<size_t>(2 * n * e.n_active), -1), {n, 2 * e.n_active});
  a.starts = desk.put(std::vector<int32_t>(static_cast<size_t>(e.n_experts + 1), -1), {e.n_experts + 1});
  a.gate = desk.room({n, e.n_active, e.expert_dim}), a.up = desk.room({n, e.n_active, e.expert_dim});
  a.down = desk.room({n, e.n_active, c.dim});
  if (w.w_shared_gate) {
    a.shared_gate = desk.room({n, e.shared_dim}), a.shared_up = desk.room({n, e.shared_dim});
    a.shared_down = desk.room({n, c.dim});
  }
  backend_.moe_ffn(a);
  Part out = desk.result(a.add.x);
  for (size_t i = 0; i < before.size(); ++i) out.values[i] -= before[i];
  return {out};
}

Parts Subject::logits(std::span<const int> tokens) const {
  const Config& c = config();
  const int64_t n = rows_of(tokens);
  Desk desk(backend_);
  std::vector<int> backwards(tokens.rbegin(), tokens.rend());
  std::vector<int32_t> rows;
  for (int64_t i = n; i-- > 0;) rows.push_back(static_cast<int32_t>(i));
  LogitsArgs a;
  a.x = desk.put(input(backwards, c.dim, 8), {n, c.dim});
  a.rows = desk.put(rows, {n});
  a.norm = weights_.output_norm, a.eps = c.norm_eps;
  a.head = weights_.head, a.bias = weights_.head_bias;
  a.scale = c.logit_scale, a.softcap = c.logit_softcap;
  a.normed = desk.room({n, c.dim});
  a.out = desk.room({n, c.vocab});
  backend_.logits(a);
  return {desk.result(a.out)};
}

}  // namespace infer::self_testing
