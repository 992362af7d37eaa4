// A product of up to 8 tokens with packed weights on Hopper, with int8 activations in groups of 32, which the kernel
// makes itself from f32 or bf16, norm included: the same arithmetic as that of the persistent kernel (decode_mma.cuh),
// for more tokens. Codes need fewer instructions than weights in bf16 do, and of those there are too many: at 8 tokens
// matmul_wgmma takes twice the memory's time to unpack them.
#pragma once

#include "kernels/cuda/activations.h"
#include "kernels/cuda/int8_operand.h"
#include "kernels/cuda/matmul_wgmma.h"

namespace infer::cuda {

/// Whether its groups have two scales, so that halves of them are multiplied apart.
bool int8_halves(DType format);
/// Whether matmul_int8 has a kernel for m tokens and this weight. gated: closed by the activation with another one of
/// the same shape.
bool int8_takes(int64_t m, const Tensor& w, bool gated, const WgmmaLimits&);
/// args.x: f32 or bf16 [m, k], with args.norm f32; or an operand. Sums are f32; a gated result is what args.form says.
void matmul_int8(const MmaArgs& args, const WgmmaLimits&, cudaStream_t);
/// Whether it has kernels that leave half a norm as args.next, and take it as args.passed, for weights of this format.
bool int8_passes_norm(DType format);
/// Whether it can leave half a norm of this product, of an x that is an operand, with MmaOutput::add.
bool int8_leaves_norm(int64_t m, const Tensor& w, const WgmmaLimits&);
/// The same as both, one after the other, in one launch; neither is gated. False, and nothing done, where their formats
/// have no kernel together.
bool matmul_int8_pair(const MmaArgs& first, const MmaArgs& second, const WgmmaLimits&, cudaStream_t);

/// The norm of x, f32 [m, k], as an Int8Operand<1>; k is a multiple of 128.
void norm_int8(const Tensor& x, const Tensor& weight, float eps, void* operand, cudaStream_t);

/// Defined in matmul_int8.cu. first == second: only p.of[0] counts.
void launch_int8(DType first, DType second, const WgmmaPairLaunch& p, cudaStream_t);

}  // namespace infer::cuda
