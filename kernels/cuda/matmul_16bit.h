// A product of up to 16 tokens with plain weights of 16 bits, as the host asks for it and as the kernel of
// matmul_16bit.cu gets it. Weights are read once, as they lie, through a ring in shared memory, and meet activations of
// their own type on tensor cores; sums are f32. Each CTA has tiles of 16 rows at full length, so nothing is joined
// between CTAs. A token's results do not depend on the other tokens, nor on how many there are up to 8, or from 9 on.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/matmul_mma.h"
#include "kernels/cuda/wgmma_plan.h"

namespace infer::cuda {

inline constexpr int k16BitWarps = 8;      ///< that multiply
inline constexpr int k16BitTiles = 8;      ///< whose sums a warp holds at once
inline constexpr int k16BitMaxSlots = 12;  ///< of the ring

/// What is best for up to 8 and up to 16 tokens. `columns`: of a tile in a slot; `fetch_warps`: that share its rows;
/// `in_flight`: bytes of weights that are asked for and not yet there, behind which whatever else is asked for waits.
template <int kTokens>
struct Shape16Bit {
  static constexpr int columns = 1024, fetch_warps = 2, in_flight = 140 << 10;
};
template <>
struct Shape16Bit<16> {
  static constexpr int columns = 512, fetch_warps = 4, in_flight = 120 << 10;
};
/// Bytes from row to row of a slot: free of bank conflicts.
template <int kTokens>
inline constexpr int k16BitPitch = Shape16Bit<kTokens>::columns * 2 + 64;
template <int kTokens>
inline constexpr int k16BitSlotBytes = kTileRows* k16BitPitch<kTokens>;

struct Launch16Bit {
  MmaMatrix w[3];
  int32_t tiles_per_unit = 1, n_units = 0;
  int32_t cols = 0, n_rows = 0;  ///< of x
  const void* x = nullptr;       ///< of the weights' type, [n_rows, cols]
  MmaOutput output = MmaOutput::store;
  int32_t gelu = 0;
  void* out = nullptr;
  int64_t out_stride = 0;
  WgmmaShare units;  ///< by CTA
  int32_t n_slots = 0;
};

/// Whether there is a kernel for m tokens and this weight, on GPUs that have wgmma.
bool takes_16bit(int64_t m, const Tensor& w);
/// args.x: of the weights' type [m, k], rows of a multiple of 16 bytes. gated: args.out is of that type too.
void matmul_16bit(const MmaArgs& args, const WgmmaLimits&, cudaStream_t);

/// In matmul_16bit.cu.
template <int kTokens>
void launch_16bit(DType, const Launch16Bit&, int n_ctas, int shared_bytes, cudaStream_t);
/// Bytes of shared memory for the warps' sums.
constexpr int sums_16bit(int tokens) { return 2 * 2 * k16BitWarps * tokens / 8 * 160 * 4; }

}  // namespace infer::cuda
