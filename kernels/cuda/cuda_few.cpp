// What stages of few rows are made of (Way::few): a norm that leaves 16 bits, then products that read weights once and
// close in registers what can be closed there. Plain weights go by matmul_16bit. Packed ones go, where GPU, rows and
// weights allow it, by matmul_int8, which takes the norm along, or by matmul_wgmma, which wants its activations
// arranged (operand.h); else by matmul_mma.
#include <vector>

#include "kernels/cuda/cuda_backend.h"

namespace infer::cuda {

FewWay CudaBackend::few_way(int64_t m, std::initializer_list<const Tensor*> weights, bool gated) const {
  bool plain = true;
  for (const Tensor* w : weights) plain = plain && w->layout == kRowMajor;
  if (plain) return FewWay::plain;
  if (!has_wgmma_ || m < kWgmmaLeast) return FewWay::mma;
  bool int8 = few_by_format(act_), wgmma = true;
  for (const Tensor* w : weights) {
    int8 = int8 && int8_takes(m, *w, gated, wgmma_limits_);
    wgmma = wgmma && wgmma_takes(m, *w) && operand_tokens(m) * w->cols() <= narrow_a_.n_elements();
  }
  return int8 ? FewWay::int8 : wgmma ? FewWay::wgmma : FewWay::mma;
}

/// Of a product whose activations may be codes or bf16, the head and down. With two scales to a group, as Q6_K has, a
/// product of codes is bound by its instructions: 144 us of an 8B's head at 8 tokens, where 16 in bf16 take 125 (H200,
/// 2026-11-27); down of 8B Q4_K_M in Q6_K: 5, 6, 8 sequences 2172, 2574, 3435 -> 2201, 2609, 3456 tok/s (2026-11-28).
/// Other formats of that kind by analogy.
FewWay CudaBackend::free_way(int64_t m, const Tensor& w) const {
  const FewWay way = few_way(m, {&w});
  const bool better =
      m > kMaxDecodeRows && int8_halves(w.dtype) && operand_tokens(m) * w.cols() <= narrow_a_.n_elements();
  return way == FewWay::int8 && better ? FewWay::wgmma : way;
}

/// `to`, a product of the norm of x. Where the product does not take it along it is made here, in narrow_a_. `whole`:
/// the product's CTAs want all columns, as those of many rows do; to make them takes each of them longer than a kernel
/// for all of them.
MmaArgs CudaBackend::norm_few(FewWay way, const Tensor& x, const Tensor& weight, float eps, MmaArgs to, bool whole) {
  if (way == FewWay::int8) {
    to.x = x;
    if (whole && int8_fits<1>(x.cols(), narrow_a_)) {
      ++counters_.launches;
      norm_int8(x, weight, eps, narrow_a_.data, stream_.get());
      to.x.data = narrow_a_.data, to.int8_scales = 1;
    } else {
      to.norm = &weight, to.eps = eps;
    }
    return to;
  }
  to.x = memory_as(narrow_a_, way == FewWay::plain ? to.w[0]->dtype : DType::BF16, x.rows(), x.cols());
  if (way == FewWay::mma || way == FewWay::plain) return norm({x, weight, eps, to.x}), to;
  ++counters_.launches;
  norm_operand(x, weight, eps, to.x.data, stream_.get());
  return to;
}

void CudaBackend::product_few(FewWay way, const MmaArgs& args) {
  ++counters_.launches;
  if (way == FewWay::int8)
    matmul_int8(args, wgmma_limits_, stream_.get());
  else if (way == FewWay::wgmma)
    matmul_wgmma(args, wgmma_limits_, stream_.get());
  else if (way == FewWay::plain)
    matmul_16bit(args, wgmma_limits_, stream_.get());
  else
    matmul_mma(args, mma_scratch_, stream_.get());
}

/// q, k and v side by side in narrow_b_, or where they belong if that is too small; one launch for each run of a
/// format, or for two that have a kernel together.
void CudaBackend::attn_in_few(const AttnInArgs& a) {
  const int64_t m = a.x.rows(), rows = a.wq.rows() + a.wk.rows() + a.wv.rows();
  const RopeStoreArgs& r = a.rope_store;
  const FewWay way = few_way(m, {&a.wq, &a.wk, &a.wv});
  const MmaArgs normed = norm_few(way, a.x, a.norm, a.eps, {{}, {&a.wq}});
  const Tensor* weights[] = {&a.wq, &a.wk, &a.wv};
  const auto args_for = [&](float* out, int64_t stride) {
    MmaArgs args = normed;
    args.out = out, args.out_stride = stride;
    return args;
  };
  if (m * rows * 2 > narrow_b_.n_elements()) {
    const Tensor* outs[] = {&r.q, &r.k, &r.v};
    const Tensor* biases[] = {&a.bq, &a.bk, &a.bv};
    for (int i = 0; i < 3; ++i) {
      MmaArgs args = args_for(outs[i]->as<float>(), weights[i]->rows());
      args.w[0] = weights[i], args.bias[0] = biases[i];
      product_few(way, args);
    }
    return rope_store(r);
  }
  const Tensor merged = memory_as(narrow_b_, DType::F32, m, rows);
  std::vector<MmaArgs> runs;
  int64_t column = 0;
  for (int i = 0; i < 3;) {
    MmaArgs args = args_for(merged.as<float>() + column, rows);
    const int first = i;
    for (; i < 3 && weights[i]->dtype == weights[first]->dtype; ++i) {
      args.w[i - first] = weights[i];
      column += weights[i]->rows();
    }
    runs.push_back(args);
  }
  const auto as_pair = [&] {
    if (way == FewWay::int8) return matmul_int8_pair(runs[0], runs[1], wgmma_limits_, stream_.get());
    return way == FewWay::wgmma && matmul_wgmma_pair(runs[0], runs[1], wgmma_limits_, stream_.get());
  };
  if (runs.size() == 2 && as_pair())
    ++counters_.launches;
  else
    for (const MmaArgs& args : runs) product_few(way, args);
  finish_heads({r, merged, a.bq, a.bk, a.bv});
}

/// The norm of all columns is a kernel of its own between two products, of which one waits for it and it for the other.
/// What it does to each number by itself the projection can do, whose CTAs have whole groups of the result then; its
/// factor is left to the sums of gate and up. 8 sequences of 8B Q4_K_M: 3522, 3553 -> 3601, 3668 tok/s (H200,
/// 2026-11-28).
bool CudaBackend::attn_out_with_norm(const AttnOutArgs& a) {
  const int64_t m = a.attn.rows(), dim = a.wo.rows();
  if (!a.next_norm || !copied(a.attn, PassedForm::codes) || !few(m, {&a.wo}) || few_way(m, {&a.wo}) != FewWay::int8 ||
      !int8_leaves_norm(m, a.wo, wgmma_limits_))
    return false;
  // Behind what attention has left.
  const int64_t codes = Int8Operand<1>::bytes(a.wo.cols()), squares = codes + Int8Operand<1>::bytes(dim),
                n_groups = dim / kGroup, end = squares + n_groups * kInt8Tokens * int64_t{sizeof(float)};
  if (end > narrow_a_.n_elements() * int64_t{sizeof(uint16_t)}) return false;
  auto* memory = narrow_a_.as<uint8_t>();
  MmaArgs args{a.attn, {&a.wo}, {&a.bo}, MmaOutput::add, {}, a.add.x.data, dim};
  args.x.data = memory, args.int8_scales = 1;
  args.next = {a.next_norm.as<float>(), memory + codes, reinterpret_cast<float*>(memory + squares),
               static_cast<int32_t>(n_groups)};
  product_few(FewWay::int8, args);
  norm_passed_ = {a.add.x.data, args.next, counters_.launches};
  return true;
}

/// Up to the activation, whose result in bf16 lies in narrow_b_, and from there on.
void CudaBackend::ffn_few(const FfnArgs& a, const Tensor& out, bool accumulate, const NormPassed& passed) {
  const int64_t m = a.add.x.rows(), ffn_dim = a.w_gate.rows();
  const FewWay together = few_way(m, {&a.w_gate, &a.w_up}, true), down = free_way(m, a.w_down);
  const bool operands = together == FewWay::wgmma, down_operand = down == FewWay::wgmma;
  const bool fused = a.w_gate.dtype == a.w_up.dtype && (operands == down_operand || together == FewWay::int8) &&
                     (!operands || wgmma_gates(m, a.w_gate, wgmma_limits_));
  const DType type = down == FewWay::plain ? a.w_down.dtype : DType::BF16;
  const Tensor gated = memory_as(narrow_b_, type, m, ffn_dim);
  const bool as_codes = fused && together == FewWay::int8 && down == FewWay::int8 && int8_fits<2>(ffn_dim, narrow_b_);
  if (fused) {
    MmaArgs args{a.add.x};
    if (together == FewWay::int8 && passed && int8_passes_norm(a.w_gate.dtype))
      args.x.data = passed.codes, args.int8_scales = 1, args.passed = passed, args.eps = a.eps;
    else
      args = norm_few(together, a.add.x, a.norm, a.eps, {{}, {&a.w_gate}}, true);
    args.w[0] = &a.w_gate, args.w[1] = &a.w_up, args.bias[0] = &a.b_gate, args.bias[1] = &a.b_up;
    args.output = MmaOutput::gated, args.activation = a.activation, args.out = gated.data, args.out_stride = ffn_dim;
    args.form = as_codes ? PassedForm::codes : !operands && down_operand ? PassedForm::operand : PassedForm::rows;
    product_few(together, args);
  } else {
    const FewWay apart = few_way(m, {&a.w_gate, &a.w_up});
    MmaArgs args = norm_few(apart, a.add.x, a.norm, a.eps, {{}, {&a.w_gate}});
    args.out_stride = ffn_dim;
    args.w[0] = &a.w_gate, args.bias[0] = &a.b_gate, args.out = a.gate.data;
    product_few(apart, args);
    args.w[0] = &a.w_up, args.bias[0] = &a.b_up, args.out = a.up.data;
    product_few(apart, args);
    activate({a.gate, a.up, a.activation, down_operand ? a.gate : gated});
    if (down_operand) ++counters_.launches, arrange_operand(a.gate, gated.data, stream_.get());
  }
  const MmaOutput output = accumulate ? MmaOutput::add : MmaOutput::store;
  MmaArgs args{gated, {&a.w_down}, {&a.b_down}, output, {}, out.data, out.cols()};
  args.int8_scales = as_codes ? 2 : 0;
  product_few(down, args);
}

}  // namespace infer::cuda
