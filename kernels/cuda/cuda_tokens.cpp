// Stages of steps of one or two tokens (experts: a few more) that are no program for the persistent kernel: each token
// by itself, in kernels that take what lies before and after a product along with it, since at this size launches cost
// more than products. A layer with experts is six of them where q, k and v are of one format.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/token_experts.h"
#include "kernels/cuda/token_products.h"

namespace infer::cuda {

bool CudaBackend::by_token(int64_t m, std::initializer_list<const Tensor*> weights) {
  const Wide wide = this->wide();
  bool all = (few_by_format(act_) || act_ == Act::int8) && m <= kMatvecMost;
  for (const Tensor* w : weights) all = all && wide.way(m, *w) == Way::matvec && token_product_takes(*w);
  return all;
}

void CudaBackend::attn_in_by_token(const AttnInArgs& a) {
  const int64_t m = a.x.rows(), rows = a.wq.rows() + a.wk.rows() + a.wv.rows();
  const RopeStoreArgs& r = a.rope_store;
  const bool merged = m * rows * 2 <= narrow_b_.n_elements();
  const Tensor all = merged ? memory_as(narrow_b_, DType::F32, m, rows) : Tensor();
  const Tensor *weights[] = {&a.wq, &a.wk, &a.wv}, *biases[] = {&a.bq, &a.bk, &a.bv}, *outs[] = {&r.q, &r.k, &r.v};
  int64_t column = 0;
  for (int i = 0; i < 3;) {  // one launch for each run of a format, or of two that have a kernel together
    TokenProductArgs args;
    args.x = a.x, args.norm = a.norm, args.eps = a.eps;
    const int first = i;
    DType last = weights[first]->dtype;
    const auto goes_along = [&](DType next) {
      return next == last || (last == weights[first]->dtype && token_product_joins(last, next));
    };
    for (; i < 3 && goes_along(weights[i]->dtype); ++i) {
      last = weights[i]->dtype;
      const int64_t n = weights[i]->rows();
      args.w[i - first] = weights[i], args.bias[i - first] = biases[i];
      args.out[i - first] = merged ? all.as<float>() + column : outs[i]->as<float>();
      args.out_stride[i - first] = merged ? rows : n;
      column += n;
    }
    ++counters_.launches;
    token_product(args, stream_.get());
  }
  if (!merged) return rope_store(r);
  finish_heads({r, all, Tensor(), Tensor(), Tensor()});
}

void CudaBackend::attn_out_by_token(const AttnOutArgs& a) {
  TokenProductArgs args;
  args.x = a.attn, args.w[0] = &a.wo, args.bias[0] = &a.bo;
  args.out[0] = a.add.x.as<float>(), args.out_stride[0] = a.wo.rows();
  args.add = true, args.scale = a.add.scale;
  ++counters_.launches;
  token_product(args, stream_.get());
}

bool CudaBackend::experts_by_token(const MoeFfnArgs& a) const {
  return !needs_.deterministic && (few_by_format(act_) || act_ == Act::int8) && a.add.x.rows() <= kTokensAlone &&
         token_experts_take(a);
}

/// For one or two tokens three launches: gate and up as one where their formats are.
void CudaBackend::shared_expert(const MoeFfnSteps& s) {
  const MatmulArgs &gate = s.shared_gate, &up = s.shared_up, &down = s.shared_down;
  const auto product = [&](std::initializer_list<const MatmulArgs*> list) {
    TokenProductArgs args;
    int i = 0;
    for (const MatmulArgs* a : list) {
      args.x = a->x, args.w[i] = &a->w, args.bias[i] = &a->bias;
      args.out[i] = a->out.as<float>(), args.out_stride[i++] = a->w.rows();
    }
    ++counters_.launches;
    token_product(args, stream_.get());
  };
  const bool alone = by_token(gate.x.rows(), {&gate.w, &up.w, &down.w});
  if (alone && gate.w.dtype == up.w.dtype)
    product({&gate, &up});
  else
    matmul(gate), matmul(up);
  activate(s.shared_activate);
  if (alone)
    product({&down});
  else
    matmul(down);
}

void CudaBackend::moe_ffn_by_token(const MoeFfnArgs& a) {
  const MoeFfnSteps s = steps(a);
  if (token_router_takes(a.w_router)) {
    ++counters_.launches;
    token_router(a, stream_.get());
  } else {
    norm(s.norm);
    matmul(s.router);
  }
  if (a.w_shared_gate) shared_expert(s);
  const bool direct = !a.add.norm;  // the last kernel adds to the residual stream itself
  counters_.launches += 2;
  token_experts_up(a, stream_.get());
  token_experts_down(a, direct, stream_.get());
  if (!direct) add(s.add);
}

}  // namespace infer::cuda
