// A product of a few tokens with quantised weights on tensor cores, as the host asks for it and as the kernel of
// matmul_mma.cuh gets it. Activations become bf16, weights are unpacked to bf16 in registers (which is exact but for
// the rounding of their scales), sums are f32. A token's results do not depend on the other tokens, and with
// MmaArgs::fixed not on how many there are either.
#pragma once

#include <cuda_runtime.h>

#include "infer/error.h"
#include "kernels/cuda/mma_plan.h"
#include "kernels/cuda/operand.h"
#include "kernels/ops.h"
#include "quant/formats.h"

namespace infer::cuda {

/// Whether the kernel may start while the one before it runs: it fetches weights until that one is done.
inline constexpr bool kMmaStartsEarly = true;

enum class MmaOutput : int32_t {
  store,  ///< out = product + bias
  add,    ///< out += product + bias
  gated,  ///< out = activation(first product + bias) * (second product + bias), in bf16
};

/// Half of a norm, which a product leaves to the next one: what it has added up, times the norm's weights, as an
/// Int8Operand<1>; its factor is for who has all columns, and is left to that one's sums.
struct NormPassed {
  const float* weight = nullptr;  ///< f32 [columns]
  uint8_t* codes = nullptr;
  float* squares = nullptr;  ///< f32 [groups][kInt8Tokens]: sums over the 32 columns of a group
  int32_t n_groups = 0;
  explicit operator bool() const { return squares != nullptr; }
};

/// One, two or three matrices of one format and width that meet the same activations.
struct MmaArgs {
  Tensor x;                    ///< f32 or bf16 [m, k]; what other kernels want of it, see FewWay
  const Tensor* w[3] = {};     ///< [n, k], layout kTiles; null: no more of them
  const Tensor* bias[3] = {};  ///< f32 [n]; or null, or of a null tensor
  MmaOutput output = MmaOutput::store;
  Activation activation = Activation::silu;
  void* out = nullptr;     ///< f32 (gated: bf16) [m, out_stride]: the columns of all matrices side by side
  int64_t out_stride = 0;  ///< in numbers
  /// The order of sums is that of the weights and the GPU, whatever m is. By matmul_mma: m may be large, x is f32.
  bool fixed = false;
  // By matmul_int8 only:
  const Tensor* norm = nullptr;  ///< f32 [k]: x's norm is multiplied instead of x
  float eps = 0;
  int int8_scales = 0;  ///< not 0: x is an Int8Operand with so many scales to a group
  PassedForm form = PassedForm::rows;
  NormPassed next = {};    ///< with `add`: of the norm that follows what is added up
  NormPassed passed = {};  ///< where x is next.codes of the product before
};

/// Sums of products whose columns are dealt out to several CTAs.
struct MmaScratch {
  float* partial = nullptr;
  int64_t partial_floats = 0;
  int32_t* arrived = nullptr;  ///< zero between launches
  int max_arrivals = 0;
};

bool mma_takes(const Tensor& w);  ///< whether matmul_mma has a kernel for this weight
void matmul_mma(const MmaArgs&, const MmaScratch&, cudaStream_t);

struct MmaMatrix {
  const uint8_t* data = nullptr;
  const float* bias = nullptr;  ///< [rows] or null
  int32_t rows = 0;
  int32_t first_unit = INT32_MAX;  ///< units of the matrices before it; gated: 0 for both
  int32_t out_column = 0;
};
/// The matrices of `args` as kernels get them, and how many units they have in all. takes(weight): whether the caller
/// has a kernel for it; throws where not, or where formats or widths differ. `what`: who says so.
template <class Takes>
int32_t take_matrices(const char* what, const MmaArgs& args, const Takes& takes, MmaMatrix (&matrices)[3]) {
  const bool gated = args.output == MmaOutput::gated;
  int32_t n_units = 0;
  int64_t columns = 0;
  for (int i = 0; i < 3 && args.w[i]; ++i) {
    const Tensor& w = *args.w[i];
    if (!takes(w) || w.dtype != args.w[0]->dtype || w.cols() != args.x.cols())
      throw Error(ErrorKind::run, what, "no CUDA kernel for this product", format_name(w.dtype));
    const auto n_tiles = static_cast<int32_t>((w.rows() + kTileRows - 1) / kTileRows);
    matrices[i].data = w.as<uint8_t>();
    matrices[i].bias = args.bias[i] ? args.bias[i]->as<float>() : nullptr;
    matrices[i].rows = static_cast<int32_t>(w.rows()), matrices[i].out_column = static_cast<int32_t>(columns);
    matrices[i].first_unit = gated ? 0 : n_units;
    n_units = gated ? n_tiles : n_units + n_tiles;
    columns += w.rows();
  }
  return n_units;
}

struct MmaLaunch {
  MmaMatrix w[3];
  int64_t tile_bytes = 0;
  int32_t n_matrices = 1, tiles_per_unit = 1, n_units = 0;
  int32_t n_chunks = 0, chunk_bytes = 0, last_bytes = 0;
  int32_t cols = 0, n_rows = 0;  ///< of x
  int32_t x_bf16 = 0;
  const void* x = nullptr;
  MmaOutput output = MmaOutput::store;
  int32_t gelu = 0;
  void* out = nullptr;
  int64_t out_stride = 0;
  int32_t n_token_blocks = 1;
  MmaPlan plan;
  float* partial = nullptr;    ///< [token block][part][tile][token][16]
  int32_t* arrived = nullptr;  ///< [token block][row block]
};

/// Defined in matmul_mma_1.cu, matmul_mma_2.cu and matmul_mma_4.cu, which compile side by side: 8, 16 and 32 tokens a
/// CTA. fixed (matmul_mma_fixed.cu): 8 tokens, with the sums of the wider ones.
void launch_mma_1(DType, const MmaLaunch&, cudaStream_t);
void launch_mma_fixed(DType, const MmaLaunch&, cudaStream_t);
void launch_mma_2(DType, const MmaLaunch&, cudaStream_t);
void launch_mma_4(DType, const MmaLaunch&, cudaStream_t);

}  // namespace infer::cuda
