// The stage of experts in the graph and eager ways. Tokens are sorted by expert on the device, so that an expert's
// weights are read once for all of its tokens. A few tokens go each by itself (cuda_tokens.cpp).
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/experts.h"

namespace infer::cuda {

void CudaBackend::route(const RouteArgs& a) {
  if (recorder_) return recorder_->unsupported("a mixture of experts");
  ++counters_.launches;
  cuda::route(a, stream_.get());
}

void CudaBackend::expert_matmul(const ExpertMatmulArgs& a) {
  if (recorder_) return recorder_->unsupported("a mixture of experts");
  ++counters_.launches;
  cuda::expert_matmul(a, nullptr, single_pairs(a.ids), stream_.get());
}

void CudaBackend::combine(const CombineArgs& a) {
  if (recorder_) return recorder_->unsupported("a mixture of experts");
  ++counters_.launches;
  cuda::combine(a, stream_.get());
}

void CudaBackend::moe_ffn(const MoeFfnArgs& a) {
  if (recorder_) return recorder_->moe_ffn(a);
  if (!fusion_.ffn) return Backend::moe_ffn(a);
  if (experts_by_token(a)) return moe_ffn_by_token(a);
  const MoeFfnSteps s = steps(a);
  norm(s.norm);
  matmul(s.router);
  route(s.route);
  const bool sorted = a.ids.rows() > 1;
  const ExpertGroups groups =
      sorted ? group_pairs(a.ids, a.w_router.rows(), a.order, a.starts, stream_.get()) : single_pairs(a.ids);
  const bool alike = a.w_gate.dtype == a.w_up.dtype;
  cuda::expert_matmul(s.gate, alike ? &s.up : nullptr, groups, stream_.get());
  if (!alike) cuda::expert_matmul(s.up, nullptr, groups, stream_.get());
  activate(s.activate);
  cuda::expert_matmul(s.down, nullptr, groups, stream_.get());
  counters_.launches += 2 + sorted + !alike;
  if (a.w_shared_gate) shared_expert(s);
  combine(s.combine);
  add(s.add);
}

}  // namespace infer::cuda
