// What the launcher of attention for steps of one new token a sequence hands its kernels, which differ in the warps of
// a block: sixteen where there is less to do than there are SMs, four where there is more and blocks can hide one
// another's waits. They compile side by side.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/divisor.h"
#include "kernels/cuda/operand.h"
#include "kernels/cuda/rope_head.cuh"

namespace infer::cuda {

/// Where k_from is null, q is as it shall be but for the scale, and k and v are in the cache.
struct AttentionStep : HeadRows {
  const int32_t *page_table, *q_start, *kv_len;
  const float* sinks;
  void* out;
  void* copy;  ///< of the result, or null: see AttentionScratch
  PassedForm copy_form;
  int copy_tokens;
  float* partial;
  int32_t* arrived;
  int64_t max_pages, window;
  int n_seqs, group, max_splits;
  int32_t n_units;
  Divisor by_splits, by_groups, by_kv_heads;  ///< a unit is a split of a group of heads of a KV head of a token
  float scale, softcap;
  DType out_type;

  __host__ __device__ int n_groups() const { return ceil_div(group, kUnitRows); }
};

/// False where tensor cores have no kernel for the head size and types. For 16 and 4 warps.
template <int kWarps>
bool launch_attention_step(const AttentionStep&, int n_sms, cudaStream_t);

}  // namespace infer::cuda
