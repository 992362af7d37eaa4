// Stages of the graph and eager ways (of one or two tokens: cuda_tokens.cpp; of few rows: cuda_few.cpp). They convert
// activations once for several products, take matrices that meet the same activations as one, and keep what lies
// between two products in 16 bits. While run() records, everything goes to the recorder instead.
#include <algorithm>
#include <utility>

#include "kernels/cuda/adjacent.h"
#include "kernels/cuda/cuda_backend.h"

namespace infer::cuda {
namespace {

Tensor flat(const Tensor& t) {
  return memory_as(t, t.dtype, t.rows(), t.n_elements() / std::max<int64_t>(t.rows(), 1));
}

}  // namespace

void CudaBackend::attn_in(const AttnInArgs& a) {
  if (recorder_) return recorder_->attn_in(a);
  forget_copies();  // their memory is used again
  if (!fusion_.attn_in) return Backend::attn_in(a);
  const Wide wide = this->wide();
  const int64_t m = a.x.rows();
  if (by_token(m, {&a.wq, &a.wk, &a.wv})) return attn_in_by_token(a);
  if (few(m, {&a.wq, &a.wk, &a.wv})) return attn_in_few(a);
  const DType type = wide.type(a.wq);
  for (const Tensor* w : {&a.wq, &a.wk, &a.wv}) {
    if (!wide.takes(m, *w) || wide.type(*w) != type) return Backend::attn_in(a);
  }
  const Tensor normed = type == DType::F32 ? a.normed : memory_as(narrow_a_, type, m, a.x.cols());
  norm({a.x, a.norm, a.eps, normed});
  const RopeStoreArgs& r = a.rope_store;
  const int64_t rows = a.wq.rows() + a.wk.rows() + a.wv.rows();
  const bool fits = m * rows * 2 <= narrow_b_.n_elements();
  if (fits && !r.norms_span_heads() && wide.takes_merged(rows, {&a.wq, &a.wk, &a.wv})) {
    const Tensor merged = memory_as(narrow_b_, DType::F32, m, rows);
    wide.product_merged(normed, {&a.wq, &a.wk, &a.wv}, merged);
    ++counters_.launches;
    return finish_heads({r, merged, a.bq, a.bk, a.bv});
  }
  wide.product({normed, a.wq, a.bq, flat(r.q)});
  wide.product({normed, a.wk, a.bk, flat(r.k)});
  wide.product({normed, a.wv, a.bv, flat(r.v)});
  counters_.launches += 3;
  rope_store(r);
}

/// How many tokens of which sequence there are is not known before attention. More tokens than sequences can be are
/// none of a step in which each has one.
void CudaBackend::finish_heads(const MergedHeads& heads) {
  heads_ = heads;
  if (!heads_may_wait_ || heads.args.q.rows() > needs_.max_seqs) store_heads();
}

void CudaBackend::store_heads() {
  if (!heads_) return;
  const MergedHeads heads = *std::exchange(heads_, std::nullopt);
  ++counters_.launches;
  rope_store_merged(heads, stream_.get());
}

void CudaBackend::attn_out(const AttnOutArgs& a) {
  if (recorder_) return recorder_->attn_out(a);
  if (!fusion_.attn_out) return Backend::attn_out(a);
  if (!a.add.norm && by_token(a.attn.rows(), {&a.wo})) return attn_out_by_token(a);
  if (a.add.norm || a.add.scale != 1) return Backend::attn_out(a);
  if (!attn_out_with_norm(a)) product(a.attn, a.wo, a.bo, a.add.x, true);
}

void CudaBackend::ffn(const FfnArgs& a) {
  if (recorder_) return recorder_->ffn(a);
  attention_copy_ = {};
  const auto passed = std::exchange(norm_passed_, {});
  const bool has_norm =
      passed.of == a.add.x.data && passed.norm.weight == a.norm.as<float>() && passed.launches == counters_.launches;
  if (!fusion_.ffn || a.activation == Activation::silu_clamped) return Backend::ffn(a);
  const Wide wide = this->wide();
  const FfnSteps s = steps(a);
  const int64_t m = a.add.x.rows();
  const DType type = wide.type(a.w_gate);
  bool fused = true;
  for (const Tensor* w : {&a.w_gate, &a.w_up, &a.w_down}) {
    fused = fused && wide.takes(m, *w) && wide.type(*w) == type;
  }
  const bool direct = !a.add.norm && a.add.scale == 1;  // the last product adds to the residual stream itself
  const Tensor& branch = direct ? a.add.x : a.add.branch;
  if (few(m, {&a.w_gate, &a.w_up, &a.w_down})) {
    ffn_few(a, branch, direct, has_norm ? passed.norm : NormPassed{});
  } else if (!fused) {
    norm(s.norm);
    matmul(s.gate);
    matmul(s.up);
    activate(s.activate);
    product(a.gate, a.w_down, a.b_down, branch, direct);
  } else {
    const int64_t dim = a.w_gate.cols(), ffn_dim = a.w_gate.rows();
    const bool narrow = type != DType::F32;
    const Tensor normed = narrow ? memory_as(narrow_a_, type, m, dim) : a.normed;
    norm({a.add.x, a.norm, a.eps, normed});
    // bf16 holds what f32 holds, so gate and up are kept in it; f16 would overflow in some models.
    const bool e4m3 = type == DType::F8_E4M3;
    const bool half = (type == DType::BF16 || e4m3) && !a.b_gate && !a.b_up;
    const DType kept = half ? DType::BF16 : DType::F32;
    const Tensor gate = memory_as(a.gate, kept, m, ffn_dim);
    Tensor up = memory_as(a.up, kept, m, ffn_dim), activated = gate;
    const auto both = wide.ready(a.w_gate) ? contiguous_rows({&a.w_gate, &a.w_up}) : std::nullopt;
    if (half && both) {
      // Rows of gate and up side by side, as many bytes as gate has in f32; up's memory is free for the result.
      std::swap(up.data, activated.data);
      up.data = gate.as<uint16_t>() + ffn_dim;
      wide.product(normed, *both, memory_as(gate, kept, m, 2 * ffn_dim), false);
    } else {
      wide.product({normed, a.w_gate, a.b_gate, gate});
      wide.product({normed, a.w_up, a.b_up, up});
    }
    if (kept != type) activated = memory_as(narrow_b_, type, m, ffn_dim);
    if (half && e4m3) {
      activate_bf16_e4m3({gate, up, a.activation, activated}, stream_.get());
    } else if (half) {
      activate_bf16({gate, up, a.activation, activated}, stream_.get(), both ? 2 * ffn_dim : 0);
    } else if (e4m3) {
      activate({gate, up, a.activation, gate});
      convert_e4m3(gate, activated, stream_.get());
      ++counters_.launches;
    } else {
      activate({gate, up, a.activation, activated});
    }
    wide.product({activated, a.w_down, a.b_down, branch}, direct);
    counters_.launches += half && !both ? 4 : 3;
  }
  if (!direct) add(s.add);
}

void CudaBackend::logits(const LogitsArgs& a) {
  if (recorder_) return recorder_->logits(a);
  // With fp8 the head stays in 16 bits: its errors are the logits' own, and a prompt that is not scored has one row.
  const Wide wide = this->wide(act_ == Act::fp8 ? Act::automatic : act_);
  const auto apart = [&] {  // the definition, with this head
    const LogitsSteps s = steps(a);
    gather(a.x, a.rows, a.normed);
    norm(s.norm);
    product(wide, s.head.x, s.head.w, s.head.bias, s.head.out, false);
    scale_softcap(a.out, a.scale, a.softcap);
  };
  if (!fusion_.logits) return apart();
  const int64_t m = a.rows.rows();
  const DType type = wide.type(a.head);
  if (m == 0) return;
  if (few(m, {&a.head})) {
    gather(a.x, a.rows, a.normed);
    const FewWay way = free_way(m, a.head);
    product_few(way, norm_few(way, a.normed, a.norm, a.eps,
                              {{}, {&a.head}, {&a.bias}, MmaOutput::store, {}, a.out.data, a.out.cols()}));
    return scale_softcap(a.out, a.scale, a.softcap);
  }
  if (!wide.takes(m, a.head) || type == DType::F32) return apart();
  gather(a.x, a.rows, a.normed);
  const Tensor normed = memory_as(narrow_a_, type, m, a.x.cols());
  norm({a.normed, a.norm, a.eps, normed});
  wide.product({normed, a.head, a.bias, a.out});
  ++counters_.launches;
  scale_softcap(a.out, a.scale, a.softcap);
}

}  // namespace infer::cuda
