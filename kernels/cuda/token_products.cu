// See token_products.h and token_rows.cuh.
#include "kernels/cuda/format_pairs.h"
#include "kernels/cuda/token_products.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/token_rows.cuh"

namespace infer::cuda {
namespace {

constexpr int kTokenWarps = 8, kThreads = kTokenWarps * 32;

struct TokenMatrix {
  const uint8_t* w;
  const float* bias;
  float* out;
  int64_t out_stride;
  int rows, first_tile;  ///< tiles of all matrices are counted on; INT32_MAX: no such matrix
};
struct TokenProduct {
  const float *x, *norm;
  TokenMatrix m[3];
  int64_t tile_bytes[2];
  int second;  ///< first tile that is of the second format
  int n_tokens, cols;
  float eps, scale;
  bool add;
};

/// Sum of row `threadIdx.x` of a tile, where there is one; ends with a barrier before.
template <class F>
__device__ __forceinline__ float sum_of_row(const uint8_t* tile, int cols, int n_rows, const uint8_t* acts) {
  __shared__ TileSums<F, kTokenWarps, 1> sums;
  float acc[1][kLaneRows<F>] = {};
  multiply_tiles<F, kTokenWarps, 1>(
      1, cols, n_rows, acts, [&](int, int) { return tile; }, [](int) { return 1.0f; }, acc);
  sums.store(acc);
  __syncthreads();
  return static_cast<int>(threadIdx.x) < n_rows ? sums.total(0, static_cast<int>(threadIdx.x)) : 0.0f;
}

/// Grid: tiles times tokens. Block: 8 warps, which share the columns of a tile of 16 rows, of format F or (from tile
/// `second` on) G. Shared: the activations, the warps' sums. Bytes: the weights once (for a second token from the L2),
/// x once a block from the L2. Bound by memory for large matrices, else by the way from one kernel's last number to the
/// next one's first.
template <class F, class G>
__global__ void __launch_bounds__(kThreads, 3) token_product_kernel(const __grid_constant__ TokenProduct p) {
  extern __shared__ __align__(16) uint8_t acts[];
  __shared__ float squares_of_warps[kTokenWarps];
  const int token = static_cast<int>(blockIdx.x) % p.n_tokens, number = static_cast<int>(blockIdx.x) / p.n_tokens;
  const bool second = F::id != G::id && number >= p.second;
  const int64_t tile_bytes = p.tile_bytes[second];
  const TokenMatrix& matrix = p.m[number >= p.m[2].first_tile ? 2 : number >= p.m[1].first_tile ? 1 : 0];
  const int first_row = (number - matrix.first_tile) * kTileRows, n_rows = min(kTileRows, matrix.rows - first_row);
  const uint8_t* tile = matrix.w + (number - matrix.first_tile) * tile_bytes;
  if (token == 0) prefetch_l2<kThreads>(tile, F::block > 1 ? tile_bytes : tile_bytes / kTileRows * n_rows);
  start_next_kernel();
  wait_for_previous_kernel();
  const int row = static_cast<int>(threadIdx.x);
  float* out = matrix.out + token * matrix.out_stride + first_row + row;
  const float before = p.add && row < n_rows ? *out : 0.0f;
  const float* x = p.x + static_cast<int64_t>(token) * p.cols;
  float squares = 0;
  // The factor of the norm is left to the sums, so that nothing waits for it.
  if (p.norm) {
    put_activations<F, kThreads>(acts, x, 1, p.cols, [&](int i, float4 v) {
      const float4 w = p.cols % 4 == 0 ? load_four<true>(p.norm, i, p.cols) : load_four<false>(p.norm, i, p.cols);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
      return make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
    });
  } else {
    put_activations<F, kThreads>(acts, x, 1, p.cols);
  }
  const float all_squares = block_sum<kTokenWarps>(squares, squares_of_warps);  // and activations are there
  float sum;
  if (second)
    sum = sum_of_row<G>(tile, p.cols, n_rows, acts);
  else
    sum = sum_of_row<F>(tile, p.cols, n_rows, acts);
  if (row >= n_rows) return;
  if (p.norm) sum *= inverse_rms(all_squares, p.cols, p.eps);
  if (matrix.bias) sum += matrix.bias[first_row + row];
  *out = p.add ? fmaf(p.scale, sum, before) : sum;
}

/// Calls function.operator()<F, G>() for a format alone, or for two that have kernels together. False for others.
template <class Function>
bool visit_formats(DType first, DType second, Function&& function) {
  if (first == second) return visit_format(first, [&]<class F>() { function.template operator()<F, F>(); });
  return visit_format_pair(first, second, function);
}

}  // namespace

bool token_product_takes(const Tensor& w) {
  const int64_t cols = w.cols();
  return decodable(w.dtype) && w.layout == packed_layout(w.dtype) && w.layout != kFileBlocks && cols > 0 &&
         cols < INT32_MAX / 8 && token_act_bytes(w.dtype, static_cast<int>(cols)) <= kTokenActBytes;
}

bool token_product_joins(DType first, DType second) {
  return visit_formats(first, second, [&]<class, class>() {});
}

void token_product(const TokenProductArgs& a, cudaStream_t stream) {
  TokenProduct p{};
  p.x = a.x.as<float>(), p.norm = a.norm.as<float>(), p.eps = a.eps;
  p.n_tokens = static_cast<int>(a.x.rows()), p.cols = static_cast<int>(a.x.cols());
  p.add = a.add, p.scale = a.scale, p.second = INT32_MAX;
  const DType first = a.w[0]->dtype;
  DType second = first;
  int n_tiles = 0;
  for (int i = 0; i < 3; ++i) {
    if (!a.w[i]) {
      p.m[i].first_tile = INT32_MAX;
      continue;
    }
    if (second == first && a.w[i]->dtype != first) second = a.w[i]->dtype, p.second = n_tiles;
    const int rows = static_cast<int>(a.w[i]->rows());
    p.m[i] = {a.w[i]->as<uint8_t>(), a.bias[i]->as<float>(), a.out[i], a.out_stride[i], rows, n_tiles};
    n_tiles += ceil_div(rows, kTileRows);
  }
  if (n_tiles == 0 || p.n_tokens == 0) return;
  const bool known = visit_formats(first, second, [&]<class F, class G>() {
    p.tile_bytes[0] = token_tile_bytes<F>(p.cols), p.tile_bytes[1] = token_tile_bytes<G>(p.cols);
    const auto kernel = token_product_kernel<F, G>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kTokenActBytes)),
          "token_product");
    launch_early("token_product", kernel, int64_t{n_tiles} * p.n_tokens, kThreads,
                 static_cast<size_t>(token_act_bytes(F::id, p.cols)), stream, p);
  });
  if (!known)
    throw Error(ErrorKind::bad_file, "token_product", "no kernel for the formats",
                format_name(first) + ", " + format_name(second));
}

}  // namespace infer::cuda
