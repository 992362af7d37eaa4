// The host's side of matmul_int8.h.
#include "kernels/cuda/matmul_int8.h"

#include <algorithm>

#include "infer/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/format_pairs.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

/// Of a product of m tokens that are made from `number_bytes` bytes a number; 0: copied, with `scales` to a group.
WgmmaShape shape_of(int64_t m, int64_t k, DType format, int n_units, int tiles_per_unit, int number_bytes, int scales) {
  WgmmaShape s;
  s.n_units = n_units, s.tiles_per_unit = tiles_per_unit, s.tokens = kInt8Tokens;
  visit_gpu_format(format, [&]<class F>() {
    if constexpr (F::block > 1) {
      s.tile_bytes = wgmma_tile_bytes<F>(kInt8Tokens);
      s.slot_columns = wgmma_slot_groups<F>(kInt8Tokens) * kGroup;
      // Instructions for 256 columns are 250, 330 and 450; four warps of a scheduler issue some 60 % of the time.
      s.issue = kHalves<F> == 2 ? 740 : scales == 2 ? 530 : 400;
    }
  });
  s.n_blocks = static_cast<int>(k / s.slot_columns);
  s.kept_bytes =
      static_cast<int>(scales == 2 ? Int8Operand<2>::bytes(s.slot_columns) : Int8Operand<1>::bytes(s.slot_columns));
  s.made = number_bytes > 0 ? s.slot_columns * static_cast<int>(m) : 0;
  s.made_from = number_bytes > 0 ? s.made * number_bytes : s.kept_bytes;
  s.latency = 2 * s.issue;
  return s;
}
/// What attention has left is copied, but the plan is as if it were made. A plan by the cost of a copy has one part,
/// and one set of warps, since it takes the memory's time for the whole: slower (8 tokens of 8B Q8_0: 2641 -> 2514
/// tok/s, H200, 2026-11-28).
WgmmaShape shape_of(const MmaArgs& a, const WgmmaLaunch& p) {
  const bool planned_as_copied = a.int8_scales == 2 || (a.int8_scales == 1 && a.output == MmaOutput::gated);
  return shape_of(a.x.rows(), a.x.cols(), a.w[0]->dtype, p.n_units, p.tiles_per_unit,
                  planned_as_copied ? 0
                  : p.x_bf16        ? 2
                                    : 4,
                  std::max(a.int8_scales, 1));
}

WgmmaLaunch int8_launch(const MmaArgs& a) {
  WgmmaLaunch p = wgmma_launch("matmul_int8", a);
  p.x_bf16 = a.x.dtype == DType::BF16;
  p.x_operand = a.int8_scales > 0, p.form = a.form;
  p.eps = a.eps;
  if (a.norm) p.norm = a.norm->as<float>();
  if (a.next) {
    p.next_norm = a.next.weight, p.passed_codes = a.next.codes, p.squares = a.next.squares;
  } else if (a.passed) {
    p.squares = a.passed.squares, p.n_squares = a.passed.n_groups;
  }
  return p;
}

}  // namespace

bool int8_halves(DType format) {
  bool halves = false;
  visit_gpu_format(format, [&]<class F>() {
    if constexpr (F::block > 1) halves = kHalves<F> == 2;
  });
  return halves;
}

bool int8_takes(int64_t m, const Tensor& w, bool gated, const WgmmaLimits& limits) {
  if (m > kInt8Tokens || !wgmma_takes(m, w) || !int8_knows(w.dtype)) return false;
  const auto n_tiles = static_cast<int>((w.rows() + kTileRows - 1) / kTileRows);
  return plan_wgmma(shape_of(m, w.cols(), w.dtype, n_tiles, gated ? 2 : 1, 4, 2), limits).n_slots > 0;
}

bool int8_passes_norm(DType format) {
  bool passes = false;
  visit_gpu_format(format, [&]<class F>() {
    if constexpr (F::block > 1) passes = passes_norm<F>();
  });
  return passes;
}

bool int8_leaves_norm(int64_t m, const Tensor& w, const WgmmaLimits& limits) {
  const auto n_tiles = static_cast<int>(w.rows() / kTileRows);
  if (!int8_passes_norm(w.dtype) || !int8_takes(m, w, false, limits) || w.rows() % (2 * kGroup) != 0) return false;
  return plan_pairs(shape_of(m, w.cols(), w.dtype, n_tiles, 1, 0, 1), limits).n_slots > 0;
}

void matmul_int8(const MmaArgs& a, const WgmmaLimits& limits, cudaStream_t stream) {
  if (a.x.rows() == 0 || a.x.cols() == 0) return;
  WgmmaPairLaunch p{{int8_launch(a), {}}, 0, std::max(a.int8_scales, 1)};
  WgmmaPlan& plan = p.of[0].plan;
  plan = a.next ? plan_pairs(shape_of(a, p.of[0]), limits) : plan_wgmma(shape_of(a, p.of[0]), limits);
  if (plan.n_slots == 0)
    throw Error(ErrorKind::run, "matmul_int8", "too little shared memory", std::to_string(limits.shared_bytes));
  p.first_ctas = plan.n_row_blocks * plan.n_parts;
  launch_int8(a.w[0]->dtype, a.w[0]->dtype, p, stream);
}

bool matmul_int8_pair(const MmaArgs& first, const MmaArgs& second, const WgmmaLimits& limits, cudaStream_t stream) {
  const DType a = first.w[0]->dtype, b = second.w[0]->dtype;
  if (!visit_format_pair(a, b, [&]<class, class>() {})) return false;
  WgmmaPairLaunch p{{int8_launch(first), int8_launch(second)}};
  if (!plan_pair(shape_of(first, p.of[0]), shape_of(second, p.of[1]), limits, p)) return false;
  launch_int8(a, b, p, stream);
  return true;
}

}  // namespace infer::cuda
