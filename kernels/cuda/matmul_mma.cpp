// The host's side of matmul_mma.h: from tensors to a launch. Everything that can be decided before the kernel runs is
// decided here and in mma_plan.h.
#include "kernels/cuda/matmul_mma.h"

#include <algorithm>

#include "infer/error.h"
#include "kernels/cuda/device.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

constexpr int kStaticShared = 1024;    ///< of the kernel, rounded up
constexpr int kSystemShared = 1024;    ///< that CUDA takes of each block
constexpr int kRoomForTwo = 80 << 10;  ///< shared memory of a CTA below which two an SM gain nothing

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "matmul_mma");
  check(cudaDeviceGetAttribute(&value, which, device), "matmul_mma");
  return value;
}

/// What `ctas` an SM may plan with.
MmaLimits limits_for(int ctas, const MmaScratch& scratch) {
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int each = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 - kSystemShared;
  if (each < kRoomForTwo) ctas = 1;
  MmaLimits limits;
  limits.n_ctas = ctas * attribute(cudaDevAttrMultiProcessorCount);
  limits.shared_bytes = (ctas == 2 ? std::min(each, most) : most) - kStaticShared;
  limits.partial_floats = scratch.partial_floats, limits.max_row_blocks = scratch.max_arrivals;
  return limits;
}

/// The product of one half of the rows of x, then of the other: the sums of all their parts have no room.
void in_halves(const MmaArgs& all, const MmaScratch& scratch, cudaStream_t stream) {
  const int64_t m = all.x.rows(), k = all.x.cols(), block = kMmaMaxTiles * kMmaTokens;
  const int64_t first = (m / 2 + block - 1) / block * block;
  for (int64_t row = 0; row < m; row += first) {
    MmaArgs part = all;
    part.x = Tensor(all.x.as<float>() + row * k, DType::F32, {std::min(first, m - row), k});
    part.out = static_cast<float*>(all.out) + row * all.out_stride;
    matmul_mma(part, scratch, stream);
  }
}

}  // namespace

bool mma_takes(const Tensor& w) { return w.layout == kTiles && w.cols() % kGroup == 0; }

void matmul_mma(const MmaArgs& a, const MmaScratch& scratch, cudaStream_t stream) {
  const int64_t m = a.x.rows(), k = a.x.cols();
  if (m == 0 || k == 0) return;
  const bool gated = a.output == MmaOutput::gated;
  const DType format = a.w[0]->dtype;
  MmaLaunch p;
  p.n_units = take_matrices("matmul_mma", a, mma_takes, p.w);
  p.n_matrices = a.w[2] ? 3 : a.w[1] ? 2 : 1;
  p.tiles_per_unit = gated ? 2 : 1;
  p.cols = static_cast<int32_t>(k), p.n_rows = static_cast<int32_t>(m);
  p.x = a.x.data, p.x_bf16 = a.x.dtype == DType::BF16;
  p.output = a.output, p.gelu = a.activation == Activation::gelu_tanh;
  p.out = a.out, p.out_stride = a.out_stride;
  p.partial = scratch.partial, p.arrived = scratch.arrived;

  MmaShape shape;
  shape.n_token_tiles = m <= kMmaTokens ? 1 : m <= 2 * kMmaTokens ? 2 : kMmaMaxTiles;
  const int64_t block_tokens = shape.n_token_tiles * kMmaTokens;
  p.n_token_blocks = static_cast<int32_t>((m + block_tokens - 1) / block_tokens);
  int ctas = 1;
  visit_gpu_format(format, [&]<class F>() {
    if constexpr (F::block > 1) {
      constexpr int kChunk = Packed<F>::chunk_groups;
      const auto groups = static_cast<int>(k / kGroup);
      p.tile_bytes = tile_bytes<F>(k);
      p.n_chunks = (groups + kChunk - 1) / kChunk;
      p.last_bytes = Chunk<F>{groups - (p.n_chunks - 1) * kChunk}.bytes();
      p.chunk_bytes = p.n_chunks > 1 ? Chunk<F>{kChunk}.bytes() : p.last_bytes;
      shape.token_bytes = std::min(groups, kChunk) * kGroup * (p.x_bf16 ? 2 : 4);
      ctas = mma_ctas_per_sm<F>(shape.n_token_tiles);
    }
  });
  shape.n_units = p.n_units, shape.tiles_per_unit = p.tiles_per_unit, shape.n_chunks = p.n_chunks;
  shape.chunk_bytes = p.chunk_bytes, shape.n_token_blocks = p.n_token_blocks;
  if (a.fixed) shape.n_parts = fixed_parts(shape, limits_for(1, scratch));
  p.plan = plan_mma(shape, limits_for(ctas, scratch));
  if (!p.plan.fits) return in_halves(a, scratch, stream);
  if (p.plan.n_slots < 1)
    throw Error(ErrorKind::run, "matmul_mma", "too little shared memory", std::to_string(p.plan.shared_bytes));
  if (shape.n_token_tiles == 1) return a.fixed ? launch_mma_fixed(format, p, stream) : launch_mma_1(format, p, stream);
  if (shape.n_token_tiles == 2) return launch_mma_2(format, p, stream);
  launch_mma_4(format, p, stream);
}

}  // namespace infer::cuda
