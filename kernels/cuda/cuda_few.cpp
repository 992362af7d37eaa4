// What stages of few rows with quantised weights are made of (Way::few): a norm that leaves bf16, then products that
// read packed weights once and close in registers what can be closed there: by matmul_wgmma, which wants its
// activations arranged (operand.h), where GPU, rows and weights allow it, else by matmul_mma.
#include "kernels/cuda/cuda_backend.h"

namespace infer::cuda {

bool CudaBackend::arranged(int64_t m, std::initializer_list<const Tensor*> weights) const {
  bool all = has_wgmma_ && m >= kWgmmaLeast;
  for (const Tensor* w : weights)
    all = all && wgmma_takes(m, *w) && operand_tokens(m) * w->cols() <= narrow_a_.n_elements();
  return all;
}

/// The norm of x in bf16, in narrow_a_.
Tensor CudaBackend::norm_few(const Tensor& x, const Tensor& weight, float eps, bool arranged) {
  const Tensor normed = memory_as(narrow_a_, DType::BF16, x.rows(), x.cols());
  if (!arranged) return norm({x, weight, eps, normed}), normed;
  ++counters_.launches;
  norm_operand(x, weight, eps, normed.data, stream_.get());
  return normed;
}

void CudaBackend::product_few(const MmaArgs& args, bool arranged) {
  ++counters_.launches;
  if (arranged)
    matmul_wgmma(args, wgmma_limits_, stream_.get());
  else
    matmul_mma(args, mma_scratch_, stream_.get());
}

/// q, k and v side by side in narrow_b_, or where they belong if that is too small; one launch for each run of a
/// format.
void CudaBackend::attn_in_few(const AttnInArgs& a) {
  const int64_t m = a.x.rows(), rows = a.wq.rows() + a.wk.rows() + a.wv.rows();
  const RopeStoreArgs& r = a.rope_store;
  const bool arranged = this->arranged(m, {&a.wq, &a.wk, &a.wv});
  const Tensor normed = norm_few(a.x, a.norm, a.eps, arranged);
  const Tensor* weights[] = {&a.wq, &a.wk, &a.wv};
  if (m * rows * 2 > narrow_b_.n_elements()) {
    const Tensor* outs[] = {&r.q, &r.k, &r.v};
    const Tensor* biases[] = {&a.bq, &a.bk, &a.bv};
    for (int i = 0; i < 3; ++i)
      product_few({normed, {weights[i]}, {biases[i]}, MmaOutput::store, {}, outs[i]->data, weights[i]->rows()},
                  arranged);
    return rope_store(r);
  }
  const Tensor merged = memory_as(narrow_b_, DType::F32, m, rows);
  int64_t column = 0;
  for (int i = 0; i < 3;) {
    MmaArgs args{normed, {}, {}, MmaOutput::store, {}, merged.as<float>() + column, rows};
    const int first = i;
    for (; i < 3 && weights[i]->dtype == weights[first]->dtype; ++i) {
      args.w[i - first] = weights[i];
      column += weights[i]->rows();
    }
    product_few(args, arranged);
  }
  ++counters_.launches;
  rope_store_merged(r, merged, a.bq, a.bk, a.bv, stream_.get());
}

/// Up to the activation, whose result in bf16 lies in narrow_b_, and from there on.
void CudaBackend::ffn_few(const FfnArgs& a, const Tensor& out, bool accumulate) {
  const int64_t m = a.add.x.rows(), ffn_dim = a.w_gate.rows();
  const bool arranged = this->arranged(m, {&a.w_gate, &a.w_up}), down_arranged = this->arranged(m, {&a.w_down});
  const bool fused = a.w_gate.dtype == a.w_up.dtype && arranged == down_arranged &&
                     (!arranged || wgmma_gates(m, a.w_gate, wgmma_limits_));
  const Tensor normed = norm_few(a.add.x, a.norm, a.eps, arranged);
  const Tensor gated = memory_as(narrow_b_, DType::BF16, m, ffn_dim);
  if (fused) {
    product_few(
        {normed, {&a.w_gate, &a.w_up}, {&a.b_gate, &a.b_up}, MmaOutput::gated, a.activation, gated.data, ffn_dim},
        arranged);
  } else {
    product_few({normed, {&a.w_gate}, {&a.b_gate}, MmaOutput::store, {}, a.gate.data, ffn_dim}, arranged);
    product_few({normed, {&a.w_up}, {&a.b_up}, MmaOutput::store, {}, a.up.data, ffn_dim}, arranged);
    activate({a.gate, a.up, a.activation, down_arranged ? a.gate : gated});
    if (down_arranged) ++counters_.launches, arrange_operand(a.gate, gated.data, stream_.get());
  }
  const MmaOutput output = accumulate ? MmaOutput::add : MmaOutput::store;
  product_few({gated, {&a.w_down}, {&a.b_down}, output, {}, out.data, out.cols()}, down_arranged);
}

}  // namespace infer::cuda
