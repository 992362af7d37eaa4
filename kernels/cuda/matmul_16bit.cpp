// The host's side of matmul_16bit.h.
#include "kernels/cuda/matmul_16bit.h"

#include <algorithm>

#include "infer/error.h"
#include "kernels/cuda/crossovers.h"

namespace infer::cuda {
namespace {

template <int kTokens>
void launch_for(DType type, Launch16Bit& p, const WgmmaLimits& limits, cudaStream_t stream) {
  constexpr int kSums = sums_16bit(kTokens), kSlot = k16BitSlotBytes<kTokens>;
  const int n_ctas = std::min(limits.n_sms, p.n_units);
  p.units = WgmmaShare(p.n_units, n_ctas);
  p.n_slots = std::min(k16BitMaxSlots, (limits.shared_bytes - kWgmmaStatic - kSums) / kSlot);
  if (p.n_slots < 2)
    throw Error(ErrorKind::run, "matmul_16bit", "too little shared memory", std::to_string(limits.shared_bytes));
  launch_16bit<kTokens>(type, p, n_ctas, p.n_slots * kSlot + kSums, stream);
}

}  // namespace

bool takes_16bit(int64_t m, const Tensor& w) {
  const bool plain = w.layout == kRowMajor && (w.dtype == DType::F16 || w.dtype == DType::BF16);
  return plain && m <= kPlainFewMost && w.cols() % 8 == 0 && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

void matmul_16bit(const MmaArgs& a, const WgmmaLimits& limits, cudaStream_t stream) {
  const int64_t m = a.x.rows(), k = a.x.cols();
  if (m == 0 || k == 0) return;
  const DType type = a.w[0]->dtype;
  Launch16Bit p;
  p.n_units = take_matrices(
      "matmul_16bit", a, [&](const Tensor& w) { return takes_16bit(m, w) && w.dtype == a.x.dtype; }, p.w);
  if (p.n_units == 0) return;
  p.tiles_per_unit = a.output == MmaOutput::gated ? 2 : 1;
  p.cols = static_cast<int32_t>(k), p.n_rows = static_cast<int32_t>(m);
  p.x = a.x.data;
  p.output = a.output, p.gelu = a.activation == Activation::gelu_tanh;
  p.out = a.out, p.out_stride = a.out_stride;
  m <= 8 ? launch_for<8>(type, p, limits, stream) : launch_for<16>(type, p, limits, stream);
}

}  // namespace infer::cuda
