// The stage of experts for a few tokens, each by itself: no sorting, three kernels. The router, with the norm; gate and
// up of a token's experts with the choice and the activation; down, with the weighted sum, a shared expert's share and
// the residual. Launchers of token_experts.cu.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops.h"

namespace infer::cuda {

inline constexpr int64_t kTokensAlone = 8;  ///< tokens up to which this beats sorting them by expert

/// Whether token_router() has a kernel for it: plain. Others go by norm and matmul.
bool token_router_takes(const Tensor& w_router);
/// Whether the other two kernels take the stage's experts; the shared expert is the caller's business.
bool token_experts_take(const MoeFfnArgs&);

/// Leaves `normed` and the logits in `router`.
void token_router(const MoeFfnArgs&, cudaStream_t);
/// From `normed` and `router` to ids, weights and the activated gate in `gate`.
void token_experts_up(const MoeFfnArgs&, cudaStream_t);
/// From there and `shared_down` to add.x, or to add.branch where `direct` is false.
void token_experts_down(const MoeFfnArgs&, bool direct, cudaStream_t);

}  // namespace infer::cuda
