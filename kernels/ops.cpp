// What each op means in terms of smaller ones (steps), and what it costs in bytes and arithmetic (cost). Knows shapes
// and formats, never values: the same functions serve the profiler of every backend.
#include "kernels/ops.h"

#include <algorithm>
#include <cmath>

#include "quant/formats.h"

namespace infer {
namespace {

/// A view of [n_tokens, heads, head_dim] as [n_tokens, heads * head_dim]; both are the same bytes.
Tensor flat(const Tensor& t) {
  Tensor out = t;
  out.n_dims = 2;
  out.dims[1] = t.dims[1] * t.dims[2] * t.dims[3];
  out.dims[2] = out.dims[3] = 1;
  return out;
}

double bytes(const Tensor& t) { return static_cast<double>(tensor_file_bytes(t)); }
double held(const Tensor& t, const std::function<double(const Tensor&)>& size) {
  return size && t ? size(t) : bytes(t);
}
double count(const Tensor& t) { return t ? static_cast<double>(t.n_elements()) : 0; }

/// Traffic of the cache rows of one token: all KV heads of K and V.
double cache_token_bytes(const Tensor& k_cache, const Tensor& v_cache) {
  const double rows = static_cast<double>(k_cache.dims[1]);
  return rows *
         static_cast<double>(row_bytes(k_cache.dtype, k_cache.dims[3]) + row_bytes(v_cache.dtype, v_cache.dims[3]));
}

}  // namespace

std::string format_name(DType dtype) {
  const FormatInfo* info = find_format(dtype);
  return info ? info->name : "type " + std::to_string(static_cast<uint32_t>(dtype));
}

AttnInSteps steps(const AttnInArgs& a) {
  const RopeStoreArgs& r = a.rope_store;
  return {.norm = {a.x, a.norm, a.eps, a.normed},
          .q = {a.normed, a.wq, a.bq, flat(r.q)},
          .k = {a.normed, a.wk, a.bk, flat(r.k)},
          .v = {a.normed, a.wv, a.bv, flat(r.v)},
          .rope_store = r};
}

AttnOutSteps steps(const AttnOutArgs& a) { return {.project = {a.attn, a.wo, a.bo, a.add.branch}, .add = a.add}; }

FfnSteps steps(const FfnArgs& a) {
  return {.norm = {a.add.x, a.norm, a.eps, a.normed},
          .gate = {a.normed, a.w_gate, a.b_gate, a.gate},
          .up = {a.normed, a.w_up, a.b_up, a.up},
          .activate = {a.gate, a.up, a.activation, a.gate},
          .down = {a.gate, a.w_down, a.b_down, a.add.branch},
          .add = a.add};
}

MoeFfnSteps steps(const MoeFfnArgs& a) {
  return {.norm = {a.add.x, a.norm, a.eps, a.normed},
          .router = {a.normed, a.w_router, a.b_router, a.router},
          .route = {a.router, a.sum_to_one, a.weight_scale, a.ids, a.weights},
          .gate = {a.normed, a.w_gate, a.b_gate, a.ids, a.gate},
          .up = {a.normed, a.w_up, a.b_up, a.ids, a.up},
          .activate = {flat(a.gate), flat(a.up), a.activation, flat(a.gate)},
          .down = {a.gate, a.w_down, a.b_down, a.ids, a.down},
          .shared_gate = {a.normed, a.w_shared_gate, {}, a.shared_gate},
          .shared_up = {a.normed, a.w_shared_up, {}, a.shared_up},
          .shared_activate = {a.shared_gate, a.shared_up, a.activation, a.shared_gate},
          .shared_down = {a.shared_gate, a.w_shared_down, {}, a.shared_down},
          .combine = {a.down, a.weights, a.shared_down, a.shared_mix ? a.normed : Tensor(), a.shared_mix, a.add.branch},
          .add = a.add};
}

LogitsSteps steps(const LogitsArgs& a) {
  return {.norm = {a.normed, a.norm, a.eps, a.normed}, .head = {a.normed, a.head, a.bias, a.out}};
}

int64_t tensor_file_bytes(const Tensor& t) {
  if (!t) return 0;
  const int64_t cols = t.cols();
  return cols == 0 ? 0 : tensor_bytes(t.dtype, t.n_elements() / cols, cols);
}

OpCost& OpCost::operator+=(const OpCost& other) {
  weight_bytes += other.weight_bytes;
  activation_bytes += other.activation_bytes;
  flops += other.flops;
  return *this;
}

OpCost cost(const EmbedArgs& a, const WeightSizes& sizes) {
  const double rows = static_cast<double>(a.ids.rows());
  return {rows * held(a.table, sizes.table) / static_cast<double>(a.table.rows()), bytes(a.ids) + bytes(a.out),
          count(a.out)};
}

OpCost cost(const NormArgs& a) { return {bytes(a.weight), bytes(a.x) + bytes(a.out), 4 * count(a.x)}; }

OpCost cost(const MatmulArgs& a, const WeightSizes& sizes) {
  return {held(a.w, sizes.matrix) + bytes(a.bias), bytes(a.x) + bytes(a.out),
          2 * count(a.out) * static_cast<double>(a.w.cols())};
}

OpCost cost(const ActivateArgs& a) { return {0, bytes(a.gate) + bytes(a.up) + bytes(a.out), 5 * count(a.gate)}; }

OpCost cost(const AddArgs& a) {
  return {bytes(a.norm), 2 * bytes(a.x) + bytes(a.branch), (a.norm ? 6 : 2) * count(a.x)};
}

OpCost cost(const RouteArgs& a) {
  return {0, bytes(a.logits) + bytes(a.ids) + bytes(a.weights),
          count(a.logits) * (2 + static_cast<double>(a.ids.cols()))};
}

OpCost cost(const ExpertMatmulArgs& a, const WeightSizes& sizes) {
  const double chosen = static_cast<double>(a.ids.cols()) / static_cast<double>(a.w.dims[0]);
  const double reached = 1 - std::pow(1 - chosen, static_cast<double>(a.ids.rows()));
  return {reached * (held(a.w, sizes.matrix) + bytes(a.bias)), bytes(a.x) + bytes(a.ids) + bytes(a.out),
          2 * count(a.out) * static_cast<double>(a.w.cols())};
}

OpCost cost(const CombineArgs& a) {
  return {bytes(a.shared_mix), bytes(a.experts) + bytes(a.weights) + bytes(a.shared) + bytes(a.x) + bytes(a.out),
          2 * (count(a.experts) + count(a.shared) + count(a.x))};
}

OpCost cost(const RopeStoreArgs& a) {
  const double rows = static_cast<double>(a.q.rows());
  const double table = a.rope.cos_sin ? 4.0 * 2 * static_cast<double>(a.rope.cos_sin.dims[1]) : 0;
  return {bytes(a.q_norm) + bytes(a.k_norm),
          2 * bytes(a.q) + bytes(a.k) + bytes(a.v) + rows * (table + cache_token_bytes(a.k_cache, a.v_cache)),
          (a.q_norm ? 7 : 3) * (count(a.q) + count(a.k))};
}

OpCost cost(const AttentionArgs& a, double kv_tokens, double kv_read) {
  if (kv_read < 0) kv_read = kv_tokens;
  return {bytes(a.sinks), bytes(a.q) + bytes(a.out) + kv_read * cache_token_bytes(a.k_cache, a.v_cache),
          4 * kv_tokens * static_cast<double>(a.q.dims[1] * a.q.dims[2])};
}

OpCost cost(const AttnInArgs& a, const WeightSizes& sizes) {
  const AttnInSteps s = steps(a);
  OpCost sum = cost(s.norm);
  for (const MatmulArgs* m : {&s.q, &s.k, &s.v}) sum += cost(*m, sizes);
  return sum += cost(s.rope_store);
}

OpCost cost(const AttnOutArgs& a, const WeightSizes& sizes) {
  const AttnOutSteps s = steps(a);
  OpCost sum = cost(s.project, sizes);
  return sum += cost(s.add);
}

OpCost cost(const FfnArgs& a, const WeightSizes& sizes) {
  const FfnSteps s = steps(a);
  OpCost sum = cost(s.norm);
  for (const MatmulArgs* m : {&s.gate, &s.up, &s.down}) sum += cost(*m, sizes);
  sum += cost(s.activate);
  return sum += cost(s.add);
}

OpCost cost(const MoeFfnArgs& a, const WeightSizes& sizes) {
  const MoeFfnSteps s = steps(a);
  OpCost sum = cost(s.norm);
  sum += cost(s.router, sizes);
  sum += cost(s.route);
  for (const ExpertMatmulArgs* m : {&s.gate, &s.up, &s.down}) sum += cost(*m, sizes);
  sum += cost(s.activate);
  if (a.w_shared_gate) {
    for (const MatmulArgs* m : {&s.shared_gate, &s.shared_up, &s.shared_down}) sum += cost(*m, sizes);
    sum += cost(s.shared_activate);
  }
  sum += cost(s.combine);
  return sum += cost(s.add);
}

OpCost cost(const LogitsArgs& a, const WeightSizes& sizes) {
  const LogitsSteps s = steps(a);
  OpCost sum = {0, 2 * bytes(a.normed) + bytes(a.rows), 0};
  sum += cost(s.norm);
  return sum += cost(s.head, sizes);
}

OpCost cost(const SampleArgs& a) { return {0, bytes(a.logits) + bytes(a.rows) + bytes(a.out), count(a.logits)}; }

OpCost cost_of_gather(const Tensor& rows, const Tensor& out) { return {0, bytes(rows) + 2 * bytes(out), 0}; }

OpCost cost_of_scale_softcap(const Tensor& x) { return {0, 2 * bytes(x), count(x)}; }

double seen_positions(int64_t position, int64_t n, int64_t window) {
  double sum = 0;
  for (int64_t i = position; i < position + n; ++i)
    sum += static_cast<double>(window > 0 ? std::min(window, i + 1) : i + 1);
  return sum;
}

}  // namespace infer
