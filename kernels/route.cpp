// A pass over the logits for each expert that is chosen: both are few.
#include "kernels/route.h"

#include <algorithm>
#include <cmath>

namespace infer {
namespace {

bool chosen(const int32_t* ids, int64_t n, int64_t expert) {
  return std::find(ids, ids + n, static_cast<int32_t>(expert)) != ids + n;
}

/// The largest logit that is not among the first n of `ids`. What cannot be compared is never larger.
int32_t next_best(const float* logits, int64_t n_experts, const int32_t* ids, int64_t n) {
  int64_t best = -1, first = -1;
  for (int64_t e = 0; e < n_experts; ++e) {
    if (chosen(ids, n, e)) continue;
    if (first < 0) first = e;
    if (std::isnan(logits[e])) continue;
    if (best < 0 || logits[e] > logits[best]) best = e;
  }
  return static_cast<int32_t>(best < 0 ? first : best);
}

}  // namespace

void route_token(const float* logits, int64_t n_experts, int64_t n_active, bool sum_to_one, float scale, int32_t* ids,
                 float* weights) {
  for (int64_t s = 0; s < n_active; ++s) ids[s] = next_best(logits, n_experts, ids, s);
  const double highest = logits[ids[0]];
  double total = 0;
  for (int64_t e = 0; e < n_experts; ++e) {
    if (!sum_to_one || std::isnan(logits[e])) total += std::exp(logits[e] - highest);
  }
  for (int64_t s = 0; s < n_active && sum_to_one; ++s) total += std::exp(logits[ids[s]] - highest);
  for (int64_t s = 0; s < n_active; ++s) {
    weights[s] = static_cast<float>(scale * std::exp(logits[ids[s]] - highest) / total);
  }
}

}  // namespace infer
