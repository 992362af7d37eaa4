// Kernels of models with experts, as the backend launches them. Nothing of the choice reaches the host: how many tokens
// an expert gets is read on the device, and a launch has room for every case.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops.h"

namespace infer::cuda {

void route(const RouteArgs&, cudaStream_t);
void combine(const CombineArgs&, cudaStream_t);

/// The pairs (token, place among its experts) of a step, those of one expert together, and cut into groups of at most
/// `group_size`, which a block multiplies at once.
struct ExpertGroups {
  const int32_t* order = nullptr;   ///< [n_pairs]: pair token * n_active + place; null: each pair is a group
  const int32_t* first = nullptr;   ///< [n_groups]: index into order; -1: no more groups
  const int32_t* starts = nullptr;  ///< [n_experts + 1]: an expert's part of order
  int n_groups = 0;                 ///< at most, whatever was chosen
  int group_size = 1;
};
/// Sorts the pairs of `ids` i32 [n_tokens, n_active] into `order` i32 [2 * n_pairs] and `starts` i32 [n_experts + 1].
/// Where an order within an expert is left to chance, no result depends on it.
ExpertGroups group_pairs(const Tensor& ids, int64_t n_experts, const Tensor& order, const Tensor& starts, cudaStream_t);
/// No sorting: weights are read anew for each pair.
ExpertGroups single_pairs(const Tensor& ids);

/// One product, or two of the same shape and format that meet the same x. Activations become bf16 (f16 for f16
/// weights), sums are f32; f32 weights are multiplied in f32.
void expert_matmul(const ExpertMatmulArgs& args, const ExpertMatmulArgs* second, const ExpertGroups& groups,
                   cudaStream_t);

}  // namespace infer::cuda
