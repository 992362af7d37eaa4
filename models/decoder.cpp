// The forward pass as a list of stages, and the buffers between them. Every family runs through these few lines;
// whatever sets one apart is a null tensor, a number of the Config or a weight that is there or not.
#include "models/decoder.h"

#include <algorithm>
#include <numeric>

namespace infer {
namespace {

constexpr size_t kAlignment = 64;
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

enum class Rows { tokens, outputs, one };

struct Field {
  Tensor Activations::*member;
  Rows rows;
  int64_t dims[2];  ///< after the rows; the second is 0 where there is none
  DType dtype = DType::F32;
};

void add_expert_fields(const Config& c, std::vector<Field>& out) {
  using A = Activations;
  const ExpertsConfig& e = c.experts;
  out.insert(out.end(), {{&A::router, Rows::tokens, {e.n_experts, 0}},
                         {&A::expert_ids, Rows::tokens, {e.n_active, 0}, DType::I32},
                         {&A::expert_weights, Rows::tokens, {e.n_active, 0}},
                         {&A::expert_order, Rows::tokens, {2 * e.n_active, 0}, DType::I32},
                         {&A::expert_starts, Rows::one, {e.n_experts + 1, 0}, DType::I32},
                         {&A::expert_gate, Rows::tokens, {e.n_active, e.expert_dim}},
                         {&A::expert_up, Rows::tokens, {e.n_active, e.expert_dim}},
                         {&A::expert_down, Rows::tokens, {e.n_active, c.dim}}});
  if (e.shared_dim == 0) return;
  out.insert(out.end(), {{&A::shared_gate, Rows::tokens, {e.shared_dim, 0}},
                         {&A::shared_up, Rows::tokens, {e.shared_dim, 0}},
                         {&A::shared_down, Rows::tokens, {c.dim, 0}}});
}

std::vector<Field> fields(const Config& c) {
  using A = Activations;
  std::vector<Field> out = {{&A::x, Rows::tokens, {c.dim, 0}},
                            {&A::normed, Rows::tokens, {c.dim, 0}},
                            {&A::q, Rows::tokens, {c.n_heads, c.head_dim}},
                            {&A::k, Rows::tokens, {c.n_kv_heads, c.head_dim}},
                            {&A::v, Rows::tokens, {c.n_kv_heads, c.head_dim}},
                            {&A::attn, Rows::tokens, {c.n_heads, c.head_dim}},
                            {&A::branch, Rows::tokens, {c.dim, 0}},
                            {&A::out_x, Rows::outputs, {c.dim, 0}},
                            {&A::out_attn, Rows::outputs, {c.n_heads, c.head_dim}},
                            {&A::out_normed, Rows::outputs, {c.dim, 0}},
                            {&A::logits, Rows::outputs, {c.vocab, 0}}};
  const auto has = [&](bool experts) {
    return std::any_of(c.layers.begin(), c.layers.end(), [=](const LayerConfig& l) { return l.experts == experts; });
  };
  if (has(false)) {
    out.insert(out.end(), {{&A::gate, Rows::tokens, {c.ffn_dim, 0}}, {&A::up, Rows::tokens, {c.ffn_dim, 0}}});
  }
  if (has(true)) add_expert_fields(c, out);
  return out;
}

int64_t rows_of(const Field& field, int64_t max_tokens, int64_t max_outputs) {
  return field.rows == Rows::tokens ? max_tokens : field.rows == Rows::outputs ? max_outputs : 1;
}

size_t field_bytes(const Field& field, int64_t max_tokens, int64_t max_outputs) {
  const int64_t numbers = rows_of(field, max_tokens, max_outputs) * field.dims[0] * std::max<int64_t>(1, field.dims[1]);
  return aligned(static_cast<size_t>(numbers) * sizeof(float));  // int32_t is as large
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
    args.sinks = weights.layers[layer].attn_sinks;
    args.out = attn();
    return args;
  }

  AddArgs add(const Tensor& post_norm) const {
    return {x(), rows(&Activations::branch), post_norm, config.norm_eps, config.residual_scale};
  }

  AttnOutArgs attn_out(size_t layer) const {
    const LayerWeights& w = weights.layers[layer];
    return {as_matrix(attn()), w.wo, w.bo, add(w.attn_post_norm), config.layers[layer].experts ? Tensor() : w.ffn_norm};
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

  /// The first rows of a buffer that not all models have.
  Tensor some(Tensor Activations::*member) const { return buffers.*member ? rows(member) : Tensor(); }

  MoeFfnArgs moe_ffn(size_t layer) const {
    const ExpertsConfig& e = config.experts;
    MoeFfnArgs args = moe_weights(config, weights.layers[layer]);
    args.add = add(weights.layers[layer].ffn_post_norm);
    args.normed = rows(&Activations::normed);
    args.router = rows(&Activations::router);
    args.ids = rows(&Activations::expert_ids), args.weights = rows(&Activations::expert_weights);
    args.order = rows(&Activations::expert_order);
    args.starts = Tensor(buffers.expert_starts.data, DType::I32, {e.n_experts + 1});
    args.gate = rows(&Activations::expert_gate), args.up = rows(&Activations::expert_up);
    args.down = rows(&Activations::expert_down);
    args.shared_gate = some(&Activations::shared_gate), args.shared_up = some(&Activations::shared_up);
    args.shared_down = some(&Activations::shared_down);
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

MoeFfnArgs moe_weights(const Config& config, const LayerWeights& w) {
  MoeFfnArgs args;
  args.norm = w.ffn_norm;
  args.eps = config.norm_eps;
  args.w_router = w.w_router, args.b_router = w.b_router;
  args.sum_to_one = config.experts.sum_to_one, args.weight_scale = config.experts.scale;
  args.w_gate = w.w_gate, args.w_up = w.w_up, args.w_down = w.w_down;
  args.b_gate = w.b_gate, args.b_up = w.b_up, args.b_down = w.b_down;
  args.w_shared_gate = w.w_shared_gate, args.w_shared_up = w.w_shared_up, args.w_shared_down = w.w_shared_down;
  args.shared_mix = w.shared_mix;
  args.activation = config.activation;
  return args;
}

size_t Activations::bytes(const Config& config, int64_t max_tokens, int64_t max_outputs) {
  size_t total = aligned(static_cast<size_t>(max_outputs) * sizeof(int32_t));
  for (const Field& field : fields(config)) total += field_bytes(field, max_tokens, max_outputs);
  return total;
}

Activations::Activations(Backend& backend, const Config& config, int64_t max_tokens, int64_t max_outputs)
    : buffer_(backend.allocate(bytes(config, max_tokens, max_outputs))) {
  char* next = static_cast<char*>(buffer_.get());
  for (const Field& field : fields(config)) {
    const int64_t rows = rows_of(field, max_tokens, max_outputs);
    Tensor& t = this->*field.member;
    t = field.dims[1] > 0 ? Tensor(next, field.dtype, {rows, field.dims[0], field.dims[1]})
                          : Tensor(next, field.dtype, {rows, field.dims[0]});
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
    if (config.layers[layer].experts) {
      backend.moe_ffn(stages.moe_ffn(layer));
    } else {
      backend.ffn(stages.ffn(layer));
    }
    seen(i, "ffn", stages.x());
  }
  if (batch.n_outputs == 0) return;
  const LogitsArgs logits = stages.logits();
  backend.logits(logits);
  seen(config.n_layers, "logits", logits.out);
}

}  // namespace infer
