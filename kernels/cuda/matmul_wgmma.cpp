// The host's side of matmul_wgmma.h: from tensors to a launch. Everything that can be decided before the kernel runs is
// decided here and in wgmma_plan.h.
#include "kernels/cuda/matmul_wgmma.h"

#include <string_view>

#include "infer/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/format_pairs.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

constexpr int kShared = 227 << 10;  ///< that a block of such a GPU may have

WgmmaShape shape_of(int64_t m, int64_t k, DType format, int n_units, int tiles_per_unit) {
  WgmmaShape shape;
  shape.n_units = n_units, shape.tiles_per_unit = tiles_per_unit, shape.tokens = operand_tokens(m);
  visit_gpu_format(format, [&]<class F>() {
    if constexpr (F::block > 1) {
      shape.tile_bytes = wgmma_tile_bytes<F>(shape.tokens);
      shape.slot_columns = wgmma_slot_groups<F>(shape.tokens) * kGroup;
    }
  });
  shape.n_blocks = static_cast<int>(k / shape.slot_columns);
  return shape;
}

}  // namespace

bool has_wgmma(int major, int minor) {
  return major == 9 && minor == 0 && std::string_view(INFER_CUDA_ARCHS).find("90a") != std::string_view::npos;
}

WgmmaLimits wgmma_limits(int n_sms) {
  WgmmaLimits limits{n_sms, kShared, {n_sms, 0, 0, 0}};
  for (int i = 1, parts = 2; i < 4; ++i, parts *= 2)
    limits.n_clusters[i] = wgmma_clusters(parts, kShared - kWgmmaStatic);
  return limits;
}

bool wgmma_takes(int64_t m, const Tensor& w) {
  if (w.layout != kTiles || m < 1 || m > kOperandMaxTokens) return false;
  bool takes = false;
  visit_gpu_format(w.dtype, [&]<class F>() {
    if constexpr (F::block > 1) takes = wgmma_takes_columns<F>(w.cols());
  });
  return takes;
}

bool wgmma_gates(int64_t m, const Tensor& gate, const WgmmaLimits& limits) {
  const auto n_tiles = static_cast<int>((gate.rows() + kTileRows - 1) / kTileRows);
  return plan_wgmma(shape_of(m, gate.cols(), gate.dtype, n_tiles, 2), limits).n_slots > 0;
}

WgmmaLaunch wgmma_launch(const char* what, const MmaArgs& a) {
  const int64_t m = a.x.rows(), k = a.x.cols();
  const bool gated = a.output == MmaOutput::gated;
  const DType format = a.w[0]->dtype;
  WgmmaLaunch p;
  p.n_units = take_matrices(
      what, a, [&](const Tensor& w) { return wgmma_takes(m, w); }, p.w);
  p.tiles_per_unit = gated ? 2 : 1;
  p.n_groups = static_cast<int32_t>(k / kGroup), p.n_rows = static_cast<int32_t>(m);
  p.x = a.x.as<uint8_t>();
  p.output = a.output, p.gelu = a.activation == Activation::gelu_tanh;
  p.out = a.out, p.out_stride = a.out_stride;
  visit_gpu_format(format, [&]<class F>() {
    if constexpr (F::block > 1) p.tile_bytes = tile_bytes<F>(k);
  });
  return p;
}

void matmul_wgmma(const MmaArgs& a, const WgmmaLimits& limits, cudaStream_t stream) {
  const int64_t m = a.x.rows(), k = a.x.cols();
  if (m == 0 || k == 0) return;
  const DType format = a.w[0]->dtype;
  WgmmaLaunch p = wgmma_launch("matmul_wgmma", a);
  WgmmaShape shape = shape_of(m, k, format, p.n_units, p.tiles_per_unit);
  if (a.fixed) shape.fixed_parts = fixed_parts(shape_of(1, k, format, p.n_units, p.tiles_per_unit), limits);
  p.plan = plan_wgmma(shape, limits);
  if (p.plan.n_slots == 0)
    throw Error(ErrorKind::run, "matmul_wgmma", "too little shared memory", std::to_string(limits.shared_bytes));
  switch (shape.tokens) {
    case 8:
      return launch_wgmma<8>(format, p, stream);
    case 16:
      return launch_wgmma<16>(format, p, stream);
    case 32:
      return launch_wgmma<32>(format, p, stream);
    case 64:
      return launch_wgmma<64>(format, p, stream);
    default:
      return launch_wgmma<128>(format, p, stream);
  }
}

bool plan_pair(const WgmmaShape& first, const WgmmaShape& second, const WgmmaLimits& limits, WgmmaPairLaunch& p) {
  WgmmaPlan &a = p.of[0].plan, &b = p.of[1].plan;
  plan_wgmma_pair(first, second, limits, a, b);
  p.first_ctas = a.n_row_blocks * a.n_parts;
  return a.n_slots > 0;
}

bool matmul_wgmma_pair(const MmaArgs& first, const MmaArgs& second, const WgmmaLimits& limits, cudaStream_t stream) {
  const int64_t m = first.x.rows(), k = first.x.cols();
  const DType a = first.w[0]->dtype, b = second.w[0]->dtype;
  // With more tokens a launch more matters less than the size of the program.
  const int tokens = operand_tokens(m);
  if ((tokens != 16 && tokens != 32) || !visit_format_pair(a, b, [&]<class, class>() {})) return false;
  WgmmaPairLaunch p{{wgmma_launch("matmul_wgmma", first), wgmma_launch("matmul_wgmma", second)}};
  if (!plan_pair(shape_of(m, k, a, p.of[0].n_units, 1), shape_of(m, k, b, p.of[1].n_units, 1), limits, p)) return false;
  tokens == 16 ? launch_wgmma_pair<16>(a, b, p, stream) : launch_wgmma_pair<32>(a, b, p, stream);
  return true;
}

}  // namespace infer::cuda
