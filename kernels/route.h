// The choice of experts for one token, on the host: what RouteArgs says, once for all backends that compute there.
#pragma once

#include <cstdint>

namespace infer {

/// `logits` [n_experts] to `ids` and `weights` [n_active], 1 <= n_active <= n_experts. See RouteArgs.
void route_token(const float* logits, int64_t n_experts, int64_t n_active, bool sum_to_one, float scale, int32_t* ids,
                 float* weights);

}  // namespace infer
