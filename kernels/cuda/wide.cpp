// See wide.h.
#include "kernels/cuda/wide.h"

#include <algorithm>

#include "kernels/cuda/adjacent.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/matmul_16bit.h"
#include "kernels/cuda/matmul_mma.h"
#include "kernels/cuda/packed.h"

namespace infer::cuda {

Way Wide::way(int64_t m, const Tensor& w) const {
  if (fixed) return Way::fixed;
  const int64_t k = w.cols();
  Possible can;
  can.ready = ready(w), can.few = mma_takes(w) || (few_plain && can.ready && takes_16bit(m, w));
  can.wide = lt && k % 8 == 0 && m * k <= narrow.n_elements() && (can.ready || block_rows(k) > 0);
  return choose_way(m, act, can, crossovers->at(w.dtype));
}

int64_t Wide::block_rows(int64_t k) const {
  const int64_t rows = unpacked->n_elements() / k;
  return rows >= 128 ? rows / 128 * 128 : rows / kTileRows * kTileRows;
}

void Wide::product(const Tensor& x, const Tensor& w, const Tensor& out, bool accumulate) const {
  const int64_t n = w.rows(), k = w.cols();
  const float beta = accumulate ? 1 : 0;
  if (ready(w)) {
    const int64_t size = element_bytes(w.dtype);
    const int64_t stride = w.layout == kRowMajor ? row_major_stride(size, k) / size : k;
    lt->matmul(x, k, w, stride, out, n, beta, stream);
    return;
  }
  const int64_t most = block_rows(k);
  for (int64_t row = 0; row < n; row += most) {
    const int64_t rows = std::min(most, n - row);
    const Tensor part = unpacked->unpack(w, row, rows, x.dtype, epoch, stream);
    const Tensor columns(out.as<char>() + row * element_bytes(out.dtype), out.dtype, {x.rows(), rows});
    lt->matmul(x, k, part, k, columns, n, beta, stream);
    unpacked->release(stream);
  }
}

bool Wide::takes_merged(int64_t rows, std::initializer_list<const Tensor*> matrices) const {
  bool unpacks = rows * (*matrices.begin())->cols() <= unpacked->n_elements(), as_they_are = true;
  for (const Tensor* w : matrices) unpacks = unpacks && !ready(*w), as_they_are = as_they_are && ready(*w);
  return unpacks || (as_they_are && contiguous_rows(matrices));
}

void Wide::product_merged(const Tensor& x, std::initializer_list<const Tensor*> matrices, const Tensor& out) const {
  if (ready(**matrices.begin())) return product(x, *contiguous_rows(matrices), out, false);
  const Tensor all = unpacked->unpack(matrices, x.dtype, epoch, stream);
  lt->matmul(x, all.cols(), all, all.cols(), out, out.cols(), 0, stream);
  unpacked->release(stream);
}

void Wide::product(const MatmulArgs& a, bool accumulate) const {
  product(a.x, a.w, a.out, accumulate);
  if (a.bias) add_bias(a.out, a.bias, stream);
}

}  // namespace infer::cuda
