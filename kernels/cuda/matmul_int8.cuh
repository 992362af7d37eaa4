// The kernel of matmul_int8.h. Activations of a CTA's columns are made once, by the warps that multiply, while the
// ring fills; then each of them takes a tile's 16 rows times the columns of a slot (int8_dot.cuh, tile_passes.cuh).
#pragma once

#include <type_traits>

#include "kernels/cuda/int8_dot.cuh"
#include "kernels/cuda/int8_groups.cuh"
#include "kernels/cuda/matmul_int8.h"
#include "kernels/cuda/tile_passes.cuh"

namespace infer::cuda {

/// What a launch has to do with a norm of which a product makes half (NormPassed). Each is an instance of its own:
/// code that is passed over is waited for, too.
enum class NormHalf { none, leaves, takes };

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// What the norm leaves for the end: sums of squares of a CTA's columns, by the warps that made them, and of all CTAs
/// of the cluster. Where x came with its squares, parts[0] has their sums.
struct Int8Squares {
  float warps[kWgmmaTiles][kInt8Tokens];  ///< of a warp's tokens
  float parts[kWgmmaMaxParts][kInt8Tokens];
};

/// Sums of a lane's numbers over the warp: of number lane / 4 in lanes 4 * number ... 4 * number + 3.
__device__ __forceinline__ float warp_sums(const float (&x)[8]) {
  const int lane = threadIdx.x % 32;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    four[i] = (lane & 16 ? x[i + 4] : x[i]) + __shfl_xor_sync(~0u, lane & 16 ? x[i] : x[i + 4], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = (lane & 8 ? four[i + 2] : four[i]) + __shfl_xor_sync(~0u, lane & 8 ? four[i] : four[i + 2], 8);
  float one = (lane & 4 ? two[1] : two[0]) + __shfl_xor_sync(~0u, lane & 4 ? two[0] : two[1], 4);
  one += __shfl_xor_sync(~0u, one, 2);
  return one + __shfl_xor_sync(~0u, one, 1);
}

/// Tokens of few columns are shared out to 2 or 4 warps, so that there is something for all sixteen: the logarithm of
/// it.
__device__ __forceinline__ int log2_shares(int n_groups) { return n_groups > 64 ? 0 : n_groups > 32 ? 1 : 2; }

/// Activations of n_groups groups from column `first` on by all warps that multiply. A warp takes 256 columns of some
/// tokens at a time, eight numbers a lane and four lanes a group, all loads side by side. What there is not keeps what
/// was there: its results go nowhere. Waits for the kernel before.
template <bool kBf16, bool kNorm>
__device__ __forceinline__ void make_activations(const WgmmaLaunch& p, int n_groups, int first, Int8Squares& squares) {
  constexpr int kAtOnce = 8;  // tokens
  const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
  const int n_blocks = (n_groups + 7) / 8;
  const int log2 = log2_shares(n_groups), share = warp & ((1 << log2) - 1);
  float sums[8] = {};
  bool waits = true;
#pragma unroll 1
  for (int block = warp >> log2; block < n_blocks; block += kWgmmaTiles >> log2) {
    const int group = block * 8 + lane / 4, column = group * kGroup + lane % 4 * 8;
    const bool there = group < n_groups;
    Eight weight, v[kAtOnce];
    if (kNorm && there) weight.load_f32(p.norm + first + column);
    if (waits) wait_for_previous_kernel(), waits = false;
    const auto token = [&](int i) { return (i << log2) + share; };
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (token(i) >= p.n_rows || !there) continue;
      const int64_t at = static_cast<int64_t>(token(i)) * p.n_groups * kGroup + first + column;
      if constexpr (kBf16)
        v[i].load_bf16(p.x + at * 2);
      else
        v[i].load_f32(p.x + at * 4);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (token(i) >= p.n_rows) break;
      if constexpr (kNorm) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (there) sums[i] = fmaf(v[i].x[e], v[i].x[e], sums[i]);
          v[i].x[e] *= weight.x[e];
        }
      }
      put_group(wgmma_memory + p.plan.kept_offset, group, token(i), v[i], there, 1.0f);
    }
  }
  if (waits) wait_for_previous_kernel();
  if constexpr (kNorm) {
    const float sum = warp_sums(sums);
    if (lane % 4 == 0) squares.warps[warp][lane / 4] = sum;
  }
}

/// Of gate and up: the activation of one times the other, the 16 rows of a tile as half a group of the next product's
/// operand with a scale to each half.
__device__ __forceinline__ void put_gated_codes(const WgmmaLaunch& p, int first_row, const float (&c)[4],
                                                const float4* up) {
  using At = Int8Operand<2>;
  const int lane = threadIdx.x % 32, r = lane / 4;
  const float4 u = up[lane];
  const float ups[4] = {u.x, u.y, u.z, u.w};
  float v[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = gated_value(p, first_row + r + e / 2 * 8, c[e], ups[e]);
  const int group = first_row / 32, half = first_row / 16 % 2;
  auto* out = static_cast<uint8_t*>(p.out);
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const int token = lane % 4 * 2 + t;
    float largest = max_nan(fabsf(v[t]), fabsf(v[2 + t]));
#pragma unroll
    for (int step = 16; step > 2; step /= 2) largest = max_nan(largest, __shfl_xor_sync(~0u, largest, step));
    const Int8Scale s(largest);
    uint32_t code[2];  // of rows r and r + 8, then of four rows in the lanes of the first of them
    int total = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      code[h] = __float_as_uint(fmaf(v[2 * h + t], s.inverse, kIntegerBits)) & 255;
      total += static_cast<int8_t>(code[h]);
      code[h] |= __shfl_down_sync(~0u, code[h], 4) << 8;
      code[h] |= __shfl_down_sync(~0u, code[h], 8) << 16;
    }
#pragma unroll
    for (int step = 16; step > 2; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    const float scale = Int8Scale::shortened(s.scale);
    if (token >= p.n_rows) continue;
    if (r % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        *reinterpret_cast<uint32_t*>(out + At::code(group, token, half * 4 + h * 2 + r / 4)) = code[h];
    }
    if (r == 1) *reinterpret_cast<float*>(out + At::scale(group, half, token)) = scale;
    if (r == 2) *reinterpret_cast<float*>(out + At::sum(group, half, token)) = scale * static_cast<float>(total);
  }
}

/// Leaves the norm's factor to the results.
template <NormHalf kHalf>
struct Int8Finish {
  static constexpr int kTokens = kInt8Tokens;
  const WgmmaLaunch& p;
  Int8Squares& squares;
  int part, log2;  ///< of the shares of a token

  __device__ __forceinline__ float own(int token) const {
    float sum = 0;
    for (int warp = token & ((1 << log2) - 1); warp < kWgmmaTiles; warp += 1 << log2)
      sum += squares.warps[warp][token >> log2];
    return sum;
  }
  __device__ __forceinline__ void join() const {
    if (!p.norm || threadIdx.x >= 32) return;
    for (int i = threadIdx.x; i < p.plan.n_parts * kTokens; i += 32) {
      const int token = i % kTokens;
      asm volatile("{\n.reg .b32 to;\nmapa.shared::cluster.u32 to, %0, %1;\nst.shared::cluster.f32 [to], %2;\n}" ::"r"(
                       shared_address(&squares.parts[part][token])),
                   "r"(i / kTokens), "f"(own(token))
                   : "memory");
    }
  }
  __device__ __forceinline__ void scale(float (&c)[4]) const {
    if (kHalf != NormHalf::takes && !p.norm) return;
    float factor[2];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int token = threadIdx.x % 4 * 2 + t;
      float sum = 0;
      if (kHalf == NormHalf::takes)
        sum = squares.parts[0][token];
      else if (p.plan.n_parts == 1)
        sum = own(token);
      else
        for (int i = 0; i < p.plan.n_parts; ++i) sum += squares.parts[i][token];
      factor[t] = inverse_rms(sum, p.n_groups * kGroup, p.eps);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) c[e] *= factor[e % 2];
  }
  __device__ __forceinline__ void put_gated(int first_row, const float (&c)[4], const float4* up) const {
    if (p.form != PassedForm::codes)
      return cuda::put_gated<8>(p, first_row, c, up, [&](int token, int row) {
        return p.form == PassedForm::operand ? operand_place(kInt8Tokens, token, row) : token * p.out_stride + row;
      });
    put_gated_codes(p, first_row, c, up);
  }
};

/// Activations that another kernel has made are copied in so many pieces, each with a barrier: the first block is
/// multiplied when its own are there.
inline constexpr int kInt8Pieces = 4;
struct Int8Pieces {
  uint64_t ready[kInt8Pieces];
  __device__ __forceinline__ void init() {
    for (uint64_t& r : ready) barrier_init(&r, 1);
  }
  /// Blocks of a piece.
  static __device__ __forceinline__ int blocks(const WgmmaRange& range) {
    return (range.end_block - range.first_block + kInt8Pieces - 1) / kInt8Pieces;
  }
};

/// What follows the only pass where half of the next norm is made, too (NormPassed): sets' sums meet in the order of
/// tokens, and then a warp has a group of 32 rows of a token, a row to a lane. All of it is executed once and waited
/// for, so it is short.
__device__ __forceinline__ void finish_with_norm(const WgmmaLaunch& p, const WgmmaRange& range, const float (&c)[4]) {
  constexpr int kStride = kPairSumsBytes / (kWgmmaTiles * kInt8Tokens * 4);
  const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
  const int n_items = (range.end - range.begin) / 2 * kInt8Tokens;
  auto* sums = reinterpret_cast<float*>(wgmma_memory);
  auto* out = static_cast<float*>(p.out);
  const float* bias = p.w[0].bias;
  int token = 0, row = 0;
  float x = 0, weight = 0;
  const auto ask = [&](int item) {
    token = item % kInt8Tokens, row = (range.begin + item / kInt8Tokens * 2) * kTileRows + lane;
    if (item >= n_items || token >= p.n_rows) return;
    x = out[token * p.out_stride + row], weight = p.next_norm[row];
    if (bias) x += bias[row];
  };
  ask(warp);
  multiplying_sync();  // the ring is free
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[(warp * kInt8Tokens + lane % 4 * 2 + e % 2) * kStride + lane / 4 + e / 2 * 8] = c[e];
  multiplying_sync();
#pragma unroll 1
  for (int item = warp; item < n_items; ask(item += kWgmmaTiles)) {
    if (token >= p.n_rows) continue;
    const float* of = sums + ((item / kInt8Tokens * 2 + lane / 16) * kInt8Tokens + token) * kStride + lane % 16;
#pragma unroll 1
    for (int set = 0; set < p.plan.n_sets; ++set, of += range.at_once * kInt8Tokens * kStride) x += *of;
    out[token * p.out_stride + row] = x;
    const float squares = warp_sum(x * x);
    if (lane == 0) p.squares[row / kGroup * kInt8Tokens + token] = squares;
    put_lanes(p.passed_codes, row / kGroup, token, x * weight);
  }
}

/// The groups of warps that multiply.
template <class F, int kScales, NormHalf kHalf>
__device__ __forceinline__ void multiply_all_codes(const WgmmaLaunch& p, const WgmmaRange& range, Int8Squares& squares,
                                                   RingOfPasses& ring, Int8Pieces& pieces) {
  constexpr int kBytes = wgmma_tile_bytes<F>(kInt8Tokens), kSlot = wgmma_slot_groups<F>(kInt8Tokens);
  const int warp = uniform(threadIdx.x / 32), n_sets = p.plan.n_sets;
  const int set = warp >> WgmmaRange::log2_of(range.at_once), tile = warp & (range.at_once - 1);
  const int n_groups = (range.end_block - range.first_block) * kSlot, first_column = range.first_block * kSlot * kGroup;
  const bool copied = kScales == 2 || kHalf != NormHalf::none || p.x_operand;
  if (copied) {
    wait_for_previous_kernel();
  } else {
    if (p.x_bf16)
      make_activations<true, false>(p, n_groups, first_column, squares);
    else if (p.norm)
      make_activations<false, true>(p, n_groups, first_column, squares);
    else
      make_activations<false, false>(p, n_groups, first_column, squares);
    multiplying_sync();
  }
  const Int8Lane lane;
  int bits[4];
#pragma unroll
  for (int& b : bits) b = static_cast<int>(kept_in_register(__float_as_uint(kIntegerBits)));
  const uint8_t* x = wgmma_memory + p.plan.kept_offset;
  const RingAddresses barriers(ring);
  const uint32_t ready = kept_in_register(shared_address(pieces.ready));
  const int of_piece = Int8Pieces::blocks(range);
  int slot = set, awaited = 0, there = copied ? range.first_block : range.end_block;  // blocks before it have theirs
  uint32_t parity = 0;
  for (int first = range.begin; first < range.end; first += range.units_at_once) {
    const WgmmaPass pass{first, min(range.units_at_once, range.end - first), range.at_once};
    const bool busy = pass.has(p, tile);
    float c[4] = {};
    for (int block = range.first_block + set; block < range.end_block; block += n_sets) {
      for (; block >= there; there += of_piece) barrier_wait(ready + awaited++ * 8, 0);
      barrier_wait(barriers.weights + slot * 8, parity);
      if (busy)
        multiply_codes<F, kScales>(wgmma_memory + slot * p.plan.slot_bytes + tile * kBytes, block,
                                   x + (block - range.first_block) * (kSlot / 2 * Int8Operand<kScales>::kPairBytes),
                                   lane, bits, c);
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(barriers.empty + slot * 8);
      slot += n_sets;
      if (slot >= p.plan.n_slots) slot -= p.plan.n_slots, parity ^= 1;
    }
    if constexpr (kHalf == NormHalf::leaves) return finish_with_norm(p, range, c);
    if constexpr (kHalf == NormHalf::takes) barrier_wait(barriers.x, 0);
    finish_pass<kInt8Tokens>(p, range, pass, set, tile, c,
                             Int8Finish<kHalf>{p, squares, range.part, log2_shares(n_groups)});
  }
}

/// Copies the activations of the CTA's columns, which another kernel has made, by one thread.
template <class F, int kScales>
__device__ __forceinline__ void fetch_operand(const WgmmaLaunch& p, const WgmmaRange& range, Int8Pieces& pieces) {
  constexpr int kBlockBytes = wgmma_slot_groups<F>(kInt8Tokens) / 2 * Int8Operand<kScales>::kPairBytes;
  wait_for_previous_kernel();
  if (!fetches()) return;
  const int of_piece = Int8Pieces::blocks(range);
  const uint64_t policy = evict_normal_policy();
  uint32_t to = shared_address(wgmma_memory) + p.plan.kept_offset;
  int piece = 0;
  for (int block = range.first_block; block < range.end_block; block += of_piece, ++piece) {
    const int bytes = min(of_piece, range.end_block - block) * kBlockBytes;
    const uint32_t ready = shared_address(&pieces.ready[piece]);
    barrier_expect(ready, bytes);
    bulk_copy(to, p.x + static_cast<int64_t>(block) * kBlockBytes, bytes, ready, policy);
    to += bytes;
  }
}

/// Sums of the squares that came with x, by a warp that has nothing else to do, while others multiply. A barrier for
/// streamed activations, of which there are none, says that they are there.
__device__ __forceinline__ void sum_squares(const WgmmaLaunch& p, Int8Squares& squares, RingOfPasses& ring) {
  constexpr int kShares = 32 / kInt8Tokens;
  const int lane = threadIdx.x % 32, token = lane % kInt8Tokens;
  wait_for_previous_kernel();
  float sum = 0;
  if (token < p.n_rows)
#pragma unroll 8
    for (int i = lane / kInt8Tokens; i < p.n_squares; i += kShares) sum += p.squares[i * kInt8Tokens + token];
  sum += __shfl_xor_sync(~0u, sum, 8);
  sum += __shfl_xor_sync(~0u, sum, 16);
  if (lane < kInt8Tokens) squares.parts[0][lane] = sum;
  __syncwarp();
  if (lane == 0) barrier_arrive(&ring.x[0]);
}

/// A CTA's part in a product.
template <class F, int kScales, NormHalf kHalf>
__device__ __forceinline__ void int8_cta(const WgmmaLaunch& p, int cta, Int8Squares& squares, RingOfPasses& ring,
                                         Int8Pieces& pieces) {
  const WgmmaRange range(p, cta, kWgmmaTiles);
  if (threadIdx.x == 0) {
    ring.init(p.plan.n_slots, range.at_once);
    pieces.init();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  start_next_kernel();
  if (uniform(threadIdx.x / 128) == kWgmmaGroups) {
    // Registers that this group gives up the others take: 5 x 96 = 32 + 4 x 112.
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    const int warp = uniform(threadIdx.x / 32 % 4);
    if (warp == kFetchWarps - 1) {
      if (kScales == 2 || kHalf != NormHalf::none || p.x_operand) fetch_operand<F, kScales>(p, range, pieces);
    } else if (kHalf == NormHalf::takes && warp == 1) {
      sum_squares(p, squares, ring);
    } else {
      fetch_all<F, kInt8Tokens, false>(p, range, ring);
    }
    if (kHalf != NormHalf::leaves && p.plan.n_parts > 1) {
      float none[4];
      __syncwarp();
      join_parts<kInt8Tokens>(p, range, 0, false, none, [] {});
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    multiply_all_codes<F, kScales, kHalf>(p, range, squares, ring, pieces);
  }
}

#endif

/// Grid: row blocks x parts of the first product, then of the second, if there is one; parts in a cluster, one CTA an
/// SM. Block: 4 groups of warps that multiply and one that fetches. Shared: the ring, sums of the cluster, sums of up;
/// the activations of the CTA's columns. Bytes: the packed weights once, x once for every row block, from the L2.
/// kScales: of a group of x; 2 is an operand that another kernel has made. kHalf other than none: one with a scale,
/// too. 8 tokens of 8B Q4_K_M, one H200, 2026-11-27: the ffn has 61 % of the read speed (--roofline, 2026-11-28);
/// products are 27000 of gate and up's 31000 cycles (marks).
template <class F, class G, int kScales, NormHalf kHalf>
__global__ void __launch_bounds__(kWgmmaThreads, 1) int8_kernel(const __grid_constant__ WgmmaPairLaunch p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ RingOfPasses ring;
  __shared__ Int8Pieces pieces;
  __shared__ Int8Squares squares;
  const int cta = static_cast<int>(blockIdx.x);
  if constexpr (!std::is_same_v<F, G>)
    if (cta >= p.first_ctas) return int8_cta<G, kScales, kHalf>(p.of[1], cta - p.first_ctas, squares, ring, pieces);
  int8_cta<F, kScales, kHalf>(p.of[0], cta, squares, ring, pieces);
#endif
}

}  // namespace infer::cuda
