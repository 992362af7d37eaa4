// The forward pass as a list of stages, and the buffers between them. Every family runs through these few lines;
// whatever sets one apart is a null tensor, a number of the Config or a weight that is there or not.
#include "models/decoder.h"

#include <algorithm>
#include <numeric>

namespace infer {
namespace {

constexpr size_t kAlignment = 64;
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Field {
  Tensor Activations::*member;
  bool per_output;  ///< rows are wanted outputs, else tokens
  int64_t dims[2];  ///< after the rows; the second is 0 where there is none
};

std::vector<Field> fields(const Config& c) {
  using A = Activations;
  return {{&A::x, false, {c.dim, 0}},
          {&A::normed, false, {c.dim, 0}},
          {&A::q, false, {c.n_heads, c.head_dim}},
          {&A::k, false, {c.n_kv_heads, c.head_dim}},
          {&A::v, false, {c.n_kv_heads, c.head_dim}},
          {&A::attn, false, {c.n_heads, c.head_dim}},
          {&A::branch, false, {c.dim, 0}},
          {&A::gate, false, {c.ffn_dim, 0}},
          {&A::up, false, {c.ffn_dim, 0}},
          {&A::out_x, true, {c.dim, 0}},
          {&A::out_attn, true, {c.n_heads, c.head_dim}},
          {&A::out_normed, true, {c.dim, 0}},
          {&A::logits, true, {c.vocab, 0}}};
}

size_t field_bytes(const Field& field, int64_t max_tokens, int64_t max_outputs) {
  const int64_t rows = field.per_output ? max_outputs : max_tokens;
  const size_t bytes = static_cast<size_t>(rows * field.dims[0] * std::max<int64_t>(1, field.dims[1])) * sizeof(float);
  return aligned(bytes);
}

/// The first `n` rows.
Tensor first(const Tensor& t, int64_t n) {
  Tensor out = t;
  out.dims[0] = n;
  return out;
}

Tensor as_matrix(const Tensor& t) { return Tensor(t.data, t.dtype, {t.dims[0], t.dims[1] * t.dims[2]}); }

/// The arguments of every stage, for the rows of one batch.
struct Stages {
  const Config& config;
  const Weights& weights;
  const std::vector<Tensor>& ropes;
  const KvTensors& kv;
  const Batch& batch;
  const Activations& buffers;
  bool narrow = false;  ///< only the rows of the wanted outputs are left, see narrow_to_outputs()

  Tensor rows(Tensor Activations::*member) const {
    return first(buffers.*member, narrow ? batch.n_outputs : batch.n_tokens);
  }
  Tensor x() const { return rows(narrow ? &Activations::out_x : &Activations::x); }
  Tensor attn() const { return rows(narrow ? &Activations::out_attn : &Activations::attn); }

  EmbedArgs embed() const { return {weights.embed, batch.ids, config.embed_scale, x()}; }

  AttnInArgs attn_in(size_t layer) const {
    const LayerWeights& w = weights.layers[layer];
    const int rope = config.layers[layer].rope;
    AttnInArgs args;
    args.x = x();
    args.norm = w.attn_norm;
    args.eps = config.norm_eps;
    args.wq = w.wq, args.wk = w.wk, args.wv = w.wv;
    args.bq = w.bq, args.bk = w.bk, args.bv = w.bv;
    args.normed = rows(&Activations::normed);
    RopeStoreArgs& r = args.rope_store;
    r.q = rows(&Activations::q), r.k = rows(&Activations::k), r.v = rows(&Activations::v);
    r.q_norm = w.q_norm, r.k_norm = w.k_norm;
    r.eps = config.norm_eps;
    if (rope >= 0) r.rope = {ropes[static_cast<size_t>(rope)], config.ropes[static_cast<size_t>(rope)].adjacent};
    r.positions = batch.positions, r.slots = batch.slots;
    r.k_cache = kv.k[layer], r.v_cache = kv.v[layer];
    return args;
  }

  AttentionArgs attention(size_t layer) const {
    AttentionArgs args;
    args.q = rows(&Activations::q);
    args.k_cache = kv.k[layer], args.v_cache = kv.v[layer];
    args.page_table = batch.page_table, args.q_start = batch.q_start, args.kv_len = batch.kv_len;
    args.scale = config.attn_scale;
    args.window = config.layers[layer].window;
    args.softcap = config.attn_softcap;
    args.out = attn();
    return args;
  }

  AddArgs add(const Tensor& post_norm) const {
    return {x(), rows(&Activations::branch), post_norm, config.norm_eps, config.residual_scale};
  }

  AttnOutArgs attn_out(size_t layer) const {
    const LayerWeights& w = weights.layers[layer];
    return {as_matrix(attn()), w.wo, w.bo, add(w.attn_post_norm)};
  }

  FfnArgs ffn(size_t layer) const {
    const LayerWeights& w = weights.layers[layer];
    FfnArgs args;
    args.norm = w.ffn_norm;
    args.eps = config.norm_eps;
    args.w_gate = w.w_gate, args.w_up = w.w_up, args.w_down = w.w_down;
    args.b_gate = w.b_gate, args.b_up = w.b_up, args.b_down = w.b_down;
    args.activation = config.activation;
    args.add = add(w.ffn_post_norm);
    args.normed = rows(&Activations::normed);
    args.gate = rows(&Activations::gate), args.up = rows(&Activations::up);
    return args;
  }

  LogitsArgs logits() const {
    LogitsArgs args;
    args.x = x();
    args.rows = narrow ? first(buffers.out_rows, batch.n_outputs) : batch.outputs;
    args.norm = weights.output_norm;
    args.eps = config.norm_eps;
    args.head = weights.head, args.bias = weights.head_bias;
    args.scale = config.logit_scale, args.softcap = config.logit_softcap;
    args.normed = first(buffers.out_normed, batch.n_outputs);
    args.out = first(buffers.logits, batch.n_outputs);
    return args;
  }

  /// Moves the rows whose logits are wanted to the front. What follows depends on no other row.
  void narrow_to_outputs(Backend& backend) {
    backend.gather(x(), batch.outputs, first(buffers.out_x, batch.n_outputs));
    backend.gather(as_matrix(attn()), batch.outputs, as_matrix(first(buffers.out_attn, batch.n_outputs)));
    narrow = true;
  }
};

}  // namespace

size_t Activations::bytes(const Config& config, int64_t max_tokens, int64_t max_outputs) {
  size_t total = aligned(static_cast<size_t>(max_outputs) * sizeof(int32_t));
  for (const Field& field : fields(config)) total += field_bytes(field, max_tokens, max_outputs);
  return total;
}

Activations::Activations(Backend& backend, const Config& config, int64_t max_tokens, int64_t max_outputs)
    : buffer_(backend.allocate(bytes(config, max_tokens, max_outputs))) {
  char* next = static_cast<char*>(buffer_.get());
  for (const Field& field : fields(config)) {
    const int64_t rows = field.per_output ? max_outputs : max_tokens;
    Tensor& t = this->*field.member;
    t = field.dims[1] > 0 ? Tensor(next, DType::F32, {rows, field.dims[0], field.dims[1]})
                          : Tensor(next, DType::F32, {rows, field.dims[0]});
    next += field_bytes(field, max_tokens, max_outputs);
  }
  std::vector<int32_t> rows(static_cast<size_t>(max_outputs));
  std::iota(rows.begin(), rows.end(), 0);
  backend.upload(next, rows.data(), rows.size() * sizeof(int32_t));
  out_rows = Tensor(next, DType::I32, {max_outputs});
}

void forward(Backend& backend, const Config& config, const Weights& weights, const std::vector<Tensor>& ropes,
             const KvTensors& kv, const Batch& batch, const Activations& activations, const StageObserver& observer) {
  Stages stages{config, weights, ropes, kv, batch, activations};
  const auto seen = [&](int64_t layer, const char* stage, const Tensor& result) {
    if (observer) observer(static_cast<int>(layer), stage, result);
  };
  backend.embed(stages.embed());
  seen(-1, "embed", stages.x());
  for (int64_t i = 0; i < config.n_layers; ++i) {
    const size_t layer = static_cast<size_t>(i);
    const bool narrow = i + 1 == config.n_layers && batch.n_outputs < batch.n_tokens && !observer;
    const AttnInArgs attn_in = stages.attn_in(layer);
    backend.attn_in(attn_in);
    seen(i, "attn_in", attn_in.rope_store.q);
    if (narrow && batch.n_outputs == 0) return;
    backend.attention(stages.attention(layer));
    seen(i, "attention", stages.attn());
    if (narrow) stages.narrow_to_outputs(backend);
    backend.attn_out(stages.attn_out(layer));
    seen(i, "attn_out", stages.x());
    backend.ffn(stages.ffn(layer));
    seen(i, "ffn", stages.x());
  }
  if (batch.n_outputs == 0) return;
  const LogitsArgs logits = stages.logits();
  backend.logits(logits);
  seen(config.n_layers, "logits", logits.out);
}

}  // namespace infer
