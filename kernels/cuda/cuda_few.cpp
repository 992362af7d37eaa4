// What stages of few rows with quantised weights are made of (Way::few): a norm that leaves bf16, then
// products by matmul_mma that read packed weights once and close in registers what can be closed there.
#include "kernels/cuda/cuda_backend.h"

namespace infer::cuda {
/// The norm of x in bf16, in narrow_a_.
Tensor CudaBackend::norm_bf16(const Tensor& x, const Tensor& weight, float eps) {
  const Tensor normed = memory_as(narrow_a_, DType::BF16, x.rows(), x.cols());
  norm({x, weight, eps, normed});
  return normed;
}

/// q, k and v side by side in narrow_b_, or where they belong if that is too small; one launch for each run of a
/// format.
void CudaBackend::attn_in_few(const AttnInArgs& a) {
  const int64_t m = a.x.rows(), rows = a.wq.rows() + a.wk.rows() + a.wv.rows();
  const RopeStoreArgs& r = a.rope_store;
  const Tensor normed = norm_bf16(a.x, a.norm, a.eps);
  const Tensor* weights[] = {&a.wq, &a.wk, &a.wv};
  if (m * rows * 2 > narrow_b_.n_elements()) {
    const Tensor* outs[] = {&r.q, &r.k, &r.v};
    const Tensor* biases[] = {&a.bq, &a.bk, &a.bv};
    for (int i = 0; i < 3; ++i)
      matmul_mma({normed, {weights[i]}, {biases[i]}, MmaOutput::store, {}, outs[i]->data, weights[i]->rows()},
                 mma_scratch_, stream_.get());
    counters_.launches += 3;
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
    matmul_mma(args, mma_scratch_, stream_.get());
    ++counters_.launches;
  }
  ++counters_.launches;
  rope_store_merged(r, merged, a.bq, a.bk, a.bv, stream_.get());
}

/// Up to the activation, whose result in bf16 lies in narrow_b_.
Tensor CudaBackend::gated_few(const FfnArgs& a) {
  const int64_t m = a.add.x.rows(), ffn_dim = a.w_gate.rows();
  const Tensor normed = norm_bf16(a.add.x, a.norm, a.eps), gated = memory_as(narrow_b_, DType::BF16, m, ffn_dim);
  if (a.w_gate.dtype == a.w_up.dtype) {
    ++counters_.launches;
    matmul_mma(
        {normed, {&a.w_gate, &a.w_up}, {&a.b_gate, &a.b_up}, MmaOutput::gated, a.activation, gated.data, ffn_dim},
        mma_scratch_, stream_.get());
    return gated;
  }
  counters_.launches += 2;
  matmul_mma({normed, {&a.w_gate}, {&a.b_gate}, MmaOutput::store, {}, a.gate.data, ffn_dim}, mma_scratch_,
             stream_.get());
  matmul_mma({normed, {&a.w_up}, {&a.b_up}, MmaOutput::store, {}, a.up.data, ffn_dim}, mma_scratch_, stream_.get());
  activate({a.gate, a.up, a.activation, gated});
  return gated;
}

}  // namespace infer::cuda
