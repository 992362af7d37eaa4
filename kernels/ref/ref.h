// The oracle: every primitive as its definition reads. Values are stored as float32, sums are kept in double, weights
// stay in the blocks of the file, one thread, no tricks, any shape. Whatever another backend computes is compared with
// this, so it stays naive for ever, and it checks the shapes of its arguments, which nobody else does.
#pragma once

#include "infer/error.h"
#include "kernels/ops.h"

namespace infer::ref {

void embed(const EmbedArgs& args);
void norm(const NormArgs& args);
void matmul(const MatmulArgs& args);
void activate(const ActivateArgs& args);
void add(const AddArgs& args);
void rope_store(const RopeStoreArgs& args);
void attention(const AttentionArgs& args);
void gather(const Tensor& x, const Tensor& rows, const Tensor& out);
void scale_softcap(const Tensor& x, float scale, float softcap);
void route(const RouteArgs& args);
void expert_matmul(const ExpertMatmulArgs& args);
void combine(const CombineArgs& args);

/// For the arguments of ops: a caller's mistake becomes an Error(run) that names the op instead of a wild access.
inline void require(bool ok, const char* op, const char* what) {
  if (!ok) throw Error(ErrorKind::run, op, std::string("bad arguments: ") + what);
}

/// One RMS norm: out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
void norm_row(const float* x, const float* weight, float eps, float* out, int64_t n);

}  // namespace infer::ref
