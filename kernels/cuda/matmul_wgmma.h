// A product of up to 128 tokens with packed weights on Hopper's warpgroup instructions, as the host asks for it and as
// the kernel of matmul_wgmma.cuh gets it. Weights are the left operand: unpacked to bf16 in registers, once for all
// tokens. Activations are the right one: bf16 in the order of operand.h, made by whoever computed them. Sums are f32.
// A token's results do not depend on the other tokens, nor on how many there are up to the next size of an operand;
// with MmaArgs::fixed on no number: all sizes add up the same columns in the same order.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/matmul_mma.h"
#include "kernels/cuda/wgmma_plan.h"

namespace infer::cuda {

struct WgmmaLaunch {
  MmaMatrix w[3];
  int64_t tile_bytes = 0;
  int32_t tiles_per_unit = 1, n_units = 0, n_groups = 0;
  int32_t n_rows = 0;          ///< tokens that there are
  const uint8_t* x = nullptr;  ///< operand; matmul_int8: f32 or bf16 [n_rows, 32 * n_groups]
  // matmul_int8 only.
  int32_t x_bf16 = 0, x_operand = 0;  ///< x is bf16, or Int8Operand<1>
  PassedForm form = PassedForm::rows;
  const float* norm = nullptr;
  float eps = 0;
  // NormPassed: written where there are weights, else read.
  const float* next_norm = nullptr;
  uint8_t* passed_codes = nullptr;
  float* squares = nullptr;
  int32_t n_squares = 0;  ///< groups; 0: none are read
  MmaOutput output = MmaOutput::store;
  int32_t gelu = 0;
  void* out = nullptr;  ///< f32 [n_rows, out_stride]; gated: an operand
  int64_t out_stride = 0;
  WgmmaPlan plan;
};

/// One product, or two of different formats that meet the same activations: CTAs of the one, then of the other.
struct WgmmaPairLaunch {
  WgmmaLaunch of[2];
  int32_t first_ctas = 0;
  int32_t scales = 1;  ///< matmul_int8: of a group of x
};

/// Whether the program and the GPU in use have the instructions.
bool has_wgmma(int major, int minor);
/// Of the GPU in use.
WgmmaLimits wgmma_limits(int n_sms);
/// Clusters of so many CTAs with so much shared memory that run at once: fewer than there are SMs for.
int wgmma_clusters(int n_ctas, int shared_bytes);
/// Whether matmul_wgmma has a kernel for m tokens and this weight.
bool wgmma_takes(int64_t m, const Tensor& w);
/// Whether it can close gate and up by the activation, too: for many tokens and many rows there is no room.
bool wgmma_gates(int64_t m, const Tensor& gate, const WgmmaLimits&);
/// args.x: an operand for operand_tokens(m) tokens, its shape [m, k]. gated: args.out is an operand too.
void matmul_wgmma(const MmaArgs& args, const WgmmaLimits&, cudaStream_t);
/// The same as both, one after the other, in one launch; neither is gated or fixed. False, and nothing done, where
/// there is no kernel for both formats and so many tokens together.
bool matmul_wgmma_pair(const MmaArgs& first, const MmaArgs& second, const WgmmaLimits&, cudaStream_t);

/// Plans of a launch of two products of these shapes. False where there is no room for both side by side.
bool plan_pair(const WgmmaShape& first, const WgmmaShape& second, const WgmmaLimits&, WgmmaPairLaunch&);
/// A launch of `args` but for its plan. Throws where a weight has no kernel; `what` is who says so.
WgmmaLaunch wgmma_launch(const char* what, const MmaArgs& args);

/// bf16 operand of x, f32 [m, k]; k is a multiple of kOperandColumns.
void arrange_operand(const Tensor& x, void* operand, cudaStream_t);
/// The norm of x, f32 [m, k], as an operand.
void norm_operand(const Tensor& x, const Tensor& weight, float eps, void* operand, cudaStream_t);

/// Defined in matmul_wgmma_8.cu .. matmul_wgmma_128.cu, which compile side by side.
template <int kTokens>
void launch_wgmma(DType, const WgmmaLaunch&, cudaStream_t);
/// Defined in matmul_wgmma_pair_16.cu and matmul_wgmma_pair_32.cu.
template <int kTokens>
void launch_wgmma_pair(DType first, DType second, const WgmmaPairLaunch&, cudaStream_t);

}  // namespace infer::cuda
