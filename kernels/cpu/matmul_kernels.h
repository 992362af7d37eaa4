// The bodies of the matmul kernels, written once for every instruction set and format. S is the instruction set
// (vectors of 16 rows; see matmul_scalar.cpp for the meaning of each operation), F a format of quant/formats.h.
// Included by matmul_scalar.cpp, _avx2.cpp and _avx512.cpp only, each with its own S in an anonymous namespace: that
// gives every instantiation internal linkage, so the linker can never merge one level's code into another's.
//
// Two shapes of loop over the same arithmetic. Few tokens (matvec_tile): codes are taken apart in registers and used at
// once for all tokens; the weight stream from memory is what bounds it. Many tokens (many_tokens): 4 tiles of a chunk,
// 64 rows x 256 columns, are taken apart once into L1, then blocks of S::kTokens tokens x S::kTiles tiles run over it;
// the multipliers are what bounds it.
//
// The arithmetic of a row and a token, for each group in ascending order: i = exact integer sum of weight code *
// activation code; acc = fma(float(i), w_scale * x_scale, acc); with offsets acc = fma(w_offset, x_sum, acc). With two
// scales to a group: part = float(i0) * w_scale0; part = fma(float(i1), w_scale1, part); acc = fma(part, x_scale, acc).
// A group's second term (ActivationForm::int8_rest) follows its first. The bias comes last. The integer sum takes
// unsigned weight codes (code + S::kBias); what the bias adds is known from the sum of the activation codes and is the
// sum's start value. Plain formats: one accumulator, one fma per column.
//
// Measured on 2026-11-22 on Zen 5 (2 cores, 3.7 GHz, other work running: best of many short runs), AVX-512, K = 2048.
// One token, one core, GB/s of packed weights from memory, of 39 that a plain read reaches: Q4_0 38  Q4_1 37  Q5_0 38
//   Q5_1 37  Q8_0 37  Q2_K 39  Q3_K 37  Q4_K 39  Q5_K 38  Q6_K 38  IQ4_NL 38  IQ4_XS 39  MXFP4 39  F16 36  F32
//   38 and the same with two terms of activations. Two cores reached 43-48 in Q4_0, Q4_1, Q4_K, Q6_K.
// 512 tokens, one core, GMAC/s of the 467 of two vpdpbusd a cycle (a group takes 8 of them and 2 more operations on the
//   same ports, 3 with offsets or two scales: 80 % and 73 % are the most): Q4_0 320  Q4_1 305  Q5_0 311  Q5_1 304  Q8_0
//   320 Q2_K 260  Q3_K 290  Q4_K 315  Q5_K 300  Q6_K 306  IQ4_NL 313  IQ4_XS 321  MXFP4 321; of 117 of fma: F32 108 F16
//   109. Two cores: Q4_0 622, Q4_K 613. With two terms of activations half of that. BF16 (two fma of expanded weights
//   since 2026-11-26): not measured alone; 0.5B on two shared cores 183 tok/s of prompts, by vdpbf16ps 121.
// AVX2 on the same core, 512 tokens: 4 and 5 bits 117, Q6_K 103, Q8_0 75.
#pragma once

#include "kernels/cpu/matmul_quantize.h"
#include "kernels/cpu/matmul_table.h"
#include "kernels/cpu/matmul_unpack.h"

namespace infer::cpu {
namespace {

/// What the arithmetic of a format needs to know, apart from its bits. A type of values, so that formats share code.
template <int halves, bool offset, int bias, bool signed_codes, int narrow>
struct Mode {
  static constexpr int kHalves = halves;   ///< scales per group
  static constexpr bool kOffset = offset;  ///< whether there are offsets
  static constexpr int kBias = bias;       ///< what codes are too large by: 0 or a power of two up to 128
  static constexpr bool kSigned = signed_codes;
  static constexpr int kNarrow = narrow;     ///< quads whose products S::dot may add up in 16 bits
  static constexpr int kQuads = 8 / halves;  ///< that share a scale
};

template <class S, class F>
using ModeOf = Mode<halves_of(Packed<F>::scales), has_mins(Packed<F>::scales), S::template kBias<Packed<F>>,
                    S::template kSignedCodes<Packed<F>>, S::template kNarrow<Packed<F>>>;

/// Calls fn.operator()<n>() for 1 <= n <= most.
template <int most, class Function>
INFER_HD void with_constant(int64_t n, Function&& fn) {
  if constexpr (most > 1) {
    if (n < most) return with_constant<most - 1>(n, fn);
  }
  fn.template operator()<most>();
}

// ---- integer dot products ------------------------------------------------------------

/// The start value of an integer sum, from -128 * sum of the activation codes.
template <class S, class M>
INFER_HD typename S::Sum start_sum(int32_t bias128) {
  if constexpr (M::kBias == 0) {
    return S::start(S::zero_int());
  } else {
    return S::start(S::set_int(bias128 / (128 / M::kBias)));
  }
}

/// Closes a group of one scale: acc += sum * (scale * x.scale) (+ offset * x.sum).
template <class S, class M>
INFER_HD void close_group(typename S::Sum sum, const GroupScales<S, 1>& w, const ActivationGroup& x,
                          typename S::Float& acc) {
  acc = S::fma(S::sum_to_float(sum), S::mul(w.scale[0], S::set(x.scale)), acc);
  if constexpr (M::kOffset) acc = S::fma(w.offset[0], S::set(x.sum), acc);
}

/// Closes a group of two: acc += (sum0 * scale0 + sum1 * scale1) * x.scale (+ offset0 * x.sum0 + offset1 * x.sum1). The
/// first product comes as `part`.
template <class S, class M>
INFER_HD void close_group(typename S::Float part, typename S::Sum sum1, const GroupScales<S, 2>& w,
                          const ActivationGroup& x, typename S::Float& acc) {
  acc = S::fma(S::fma(S::sum_to_float(sum1), w.scale[1], part), S::set(x.scale), acc);
  if constexpr (M::kOffset) {
    acc = S::fma(w.offset[0], S::set(x.half_sum[0]), acc);
    acc = S::fma(w.offset[1], S::set(x.half_sum[1]), acc);
  }
}

/// One group of one tile for one token, codes in registers.
template <class S, class M>
INFER_HD void dot_group(const typename S::Bytes w[8], const GroupScales<S, M::kHalves>& scales,
                        const ActivationGroup& x, typename S::Float& acc) {
  auto sum = start_sum<S, M>(M::kHalves == 1 ? x.bias : x.half_bias[0]);
#pragma GCC unroll 8
  for (int q = 0; q < M::kQuads; ++q) sum = S::template dot<M>(sum, w[q], S::set_int(x.quad[q]), q);
  if constexpr (M::kHalves == 1) {
    close_group<S, M>(sum, scales, x, acc);
  } else {
    const auto part = S::mul(S::sum_to_float(sum), scales.scale[0]);
    sum = start_sum<S, M>(x.half_bias[1]);
#pragma GCC unroll 8
    for (int q = 0; q < 4; ++q) sum = S::template dot<M>(sum, w[4 + q], S::set_int(x.quad[4 + q]), q);
    close_group<S, M>(part, sum, scales, x, acc);
  }
}

/// A range of tokens and one tile of the result. Sums that wait for the next chunk of columns wait in the result
/// itself.
template <class S>
struct Output {
  INFER_HD Output(const MatmulCall& c, int64_t tile, int64_t token)
      : p(c.out + token * c.out_stride + tile * kTile),
        stride(c.out_stride),
        n(static_cast<int>(c.rows - tile * kTile < kTile ? c.rows - tile * kTile : kTile)) {}
  INFER_HD typename S::Float load(int t) const { return S::load_n(p + t * stride, n); }
  INFER_HD void store(int t, typename S::Float acc) const { S::store_n(p + t * stride, acc, n); }

  float* p;
  int64_t stride;
  int n;  ///< rows of the tile that exist
};

template <class S>
INFER_HD void store_rows(const MatmulCall& c, int64_t tile, int64_t token, typename S::Float acc) {
  const Output<S> out(c, tile, token);
  if (c.bias != nullptr) acc = S::add(acc, S::load_n(c.bias + tile * kTile, out.n));
  out.store(0, acc);
}

/// Few tokens: one tile against T of them, the tile read once.
template <class S, class F, int T>
void matvec_tile(const MatmulCall& c, int64_t tile, int64_t token) {
  using M = ModeOf<S, F>;
  constexpr int64_t kGroupBytes = chunk_bytes<F>(kChunkGroups) / kChunkGroups;  // scales included
  constexpr int kLines = static_cast<int>((kGroupBytes + 63) / 64);
  const int64_t groups = c.cols / kGroup;
  const uint8_t* p = c.w + tile * tile_bytes<F>(c.cols);
  const auto* x = reinterpret_cast<const ActivationGroup*>(c.acts) + token * groups;
  const auto* rest = reinterpret_cast<const ActivationGroup*>(c.rest) + token * groups;
  typename S::Float acc[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) acc[t] = S::zero();
  for (int64_t first = 0; first < groups; first += kChunkGroups) {
    const int n = static_cast<int>(groups - first < kChunkGroups ? groups - first : kChunkGroups);
    const ChunkScales<S, F> scales(p);
    const uint8_t* ahead = p + S::kPrefetchBytes;
    p += scale_bytes(Packed<F>::scales, n);
    for (int g = 0; g < n; ++g, p += kCodeBytes<F>, ahead += kGroupBytes) {
      for (int line = 0; line < kLines; ++line) S::prefetch(ahead + 64 * line);
      GroupScales<S, M::kHalves> s;
      scales.get(g, s);
      typename S::Bytes w[8];
      unpack_codes<S, F>(p, w);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) dot_group<S, M>(w, s, x[t * groups + first + g], acc[t]);
      if (c.rest == nullptr) continue;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) dot_group<S, M>(w, s, rest[t * groups + first + g], acc[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) store_rows<S>(c, tile, token + t, acc[t]);
}

// ---- many tokens ------------------------------------------------------------

/// A chunk of a tile, taken apart.
struct alignas(64) PanelTile {
  uint8_t codes[kChunkGroups][8][kCodeVector];
  float scale[kChunkGroups][2][kTile], offset[kChunkGroups][2][kTile];
};
inline constexpr int kPanelTiles = 4;
static_assert(kPanelTiles * sizeof(PanelTile) <= kScratchBytes);

template <class S, class F>
void fill_panel(const uint8_t* p, int groups, PanelTile& panel) {
  constexpr int kHalves = halves_of(Packed<F>::scales);
  const ChunkScales<S, F> scales(p);
  p += scale_bytes(Packed<F>::scales, groups);
  for (int g = 0; g < groups; ++g, p += kCodeBytes<F>) {
    GroupScales<S, kHalves> s;
    scales.get(g, s);
#pragma GCC unroll 8
    for (int half = 0; half < kHalves; ++half) {
      S::store_n(panel.scale[g][half], s.scale[half], kTile);
      if constexpr (has_mins(Packed<F>::scales)) S::store_n(panel.offset[g][half], s.offset[half], kTile);
    }
    typename S::Bytes w[8];
    unpack_codes<S, F>(p, w);
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) S::store_bytes(panel.codes[g][q], w[q]);
  }
}

/// The integer sums of T tokens x N tiles over one group of a panel, or over one half of it.
template <class S, class M, int T, int N>
INFER_HD void panel_sums(const PanelTile* panel, const ActivationGroup* x, int64_t x_stride, int g, int half,
                         typename S::Sum (&sum)[T][N]) {
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const auto start = start_sum<S, M>(M::kHalves == 1 ? x[t * x_stride].bias : x[t * x_stride].half_bias[half]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[t][n] = start;
  }
#pragma GCC unroll 8
  for (int q = 0; q < M::kQuads; ++q) {
    typename S::Bytes w[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) w[n] = S::load_bytes(panel[n].codes[g][half * M::kQuads + q]);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const auto quad = S::set_int(x[t * x_stride].quad[half * M::kQuads + q]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[t][n] = S::template dot<M>(sum[t][n], w[n], quad, q);
    }
  }
}

/// T tokens x N tiles over one group of a panel.
template <class S, class M, int T, int N>
INFER_HD void panel_group(const PanelTile* panel, const ActivationGroup* x, int64_t x_stride, int g,
                          typename S::Float (&acc)[T][N]) {
  typename S::Sum sum[T][N];
  typename S::Float part[T][N];
  panel_sums<S, M, T, N>(panel, x, x_stride, g, 0, sum);
  if constexpr (M::kHalves == 2) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const auto scale = S::load_n(panel[n].scale[g][0], kTile);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) part[t][n] = S::mul(S::sum_to_float(sum[t][n]), scale);
    }
    panel_sums<S, M, T, N>(panel, x, x_stride, g, 1, sum);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    GroupScales<S, M::kHalves> w;
#pragma GCC unroll 2
    for (int half = 0; half < M::kHalves; ++half) {
      w.scale[half] = S::load_n(panel[n].scale[g][half], kTile);
      if constexpr (M::kOffset) w.offset[half] = S::load_n(panel[n].offset[g][half], kTile);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      if constexpr (M::kHalves == 1) {
        close_group<S, M>(sum[t][n], w, x[t * x_stride], acc[t][n]);
      } else {
        close_group<S, M>(part[t][n], sum[t][n], w, x[t * x_stride], acc[t][n]);
      }
    }
  }
}

/// Where a panel stands in the product.
struct PanelPlace {
  int64_t tile, group;
  int groups;
  bool first, last;  ///< chunk of the columns
};

template <class S, class M, int T, int N>
void panel_block(const MatmulCall& c, const PanelPlace& at, const PanelTile* panel, int64_t token) {
  const int64_t x_stride = c.cols / kGroup;
  const auto* x = reinterpret_cast<const ActivationGroup*>(c.acts) + token * x_stride + at.group;
  typename S::Float acc[T][N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const Output<S> out(c, at.tile + n, token);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t][n] = at.first ? S::zero() : out.load(t);
  }
  if (c.rest == nullptr) {
    for (int g = 0; g < at.groups; ++g) panel_group<S, M, T, N>(panel, x + g, x_stride, g, acc);
  } else {
    const auto* rest = reinterpret_cast<const ActivationGroup*>(c.rest) + token * x_stride + at.group;
    for (int i = 0; i < 2 * at.groups; ++i) {
      panel_group<S, M, T, N>(panel, (i % 2 ? rest : x) + i / 2, x_stride, i / 2, acc);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const Output<S> out(c, at.tile + n, token);
    if (at.last && c.bias != nullptr) {
      const auto bias = S::load_n(c.bias + (at.tile + n) * kTile, out.n);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[t][n] = S::add(acc[t][n], bias);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) out.store(t, acc[t][n]);
  }
}

/// All tokens against one panel of `tiles` tiles.
template <class S, class M>
void panel_tokens(const MatmulCall& c, const PanelPlace& at, int tiles, const PanelTile* panel) {
  for (int64_t token = 0; token < c.m; token += S::kTokens) {
    for (int n = 0; n < tiles; n += S::kTiles) {
      const PanelPlace here = {at.tile + n, at.group, at.groups, at.first, at.last};
      with_constant<S::kTokens>(c.m - token, [&]<int T>() {
        with_constant<S::kTiles>(tiles - n, [&]<int N>() { panel_block<S, M, T, N>(c, here, panel + n, token); });
      });
    }
  }
}

template <class S, class F>
void many_tokens(const MatmulCall& c) {
  const int64_t groups = c.cols / kGroup;
  auto* panel = reinterpret_cast<PanelTile*>(c.scratch);
  for (int64_t tile = c.tile_begin; tile < c.tile_end; tile += kPanelTiles) {
    const int64_t left = c.tile_end - tile;
    const int tiles = static_cast<int>(left < kPanelTiles ? left : kPanelTiles);
    const uint8_t* p = c.w + tile * tile_bytes<F>(c.cols);
    for (int64_t group = 0; group < groups; group += kChunkGroups) {
      const int n = static_cast<int>(groups - group < kChunkGroups ? groups - group : kChunkGroups);
      for (int i = 0; i < tiles; ++i) fill_panel<S, F>(p + i * tile_bytes<F>(c.cols), n, panel[i]);
      p += chunk_bytes<F>(n);
      const PanelPlace at = {tile, group, n, group == 0, group + n == groups};
      panel_tokens<S, ModeOf<S, F>>(c, at, tiles, panel);
    }
  }
}

// ---- plain formats ------------------------------------------------------------

/// Columns that one step of a plain format takes.
template <class F>
inline constexpr int64_t kStep = F::id == DType::BF16 ? 2 : 1;

/// T tokens x N tiles over the steps [begin, end), one accumulator each, columns in order.
template <class S, class F, int T, int N>
void plain_block(const MatmulCall& c, int64_t tile, int64_t token, int64_t begin, int64_t end) {
  constexpr int64_t kStepBytes = kTile * kStep<F> * static_cast<int64_t>(sizeof(typename F::Block));
  const int64_t x_stride = (c.cols * 4 + 63) / 64 * 64;
  const uint8_t* p = c.w + tile * tile_bytes<F>(c.cols);
  const uint8_t* x = c.acts + token * x_stride;
  typename S::Float acc[T][N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const Output<S> out(c, tile + n, token);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t][n] = begin == 0 ? S::zero() : out.load(t);
  }
  for (int64_t k = begin; k < end; ++k) {
    for (int n = 0; n < N; ++n) S::prefetch(p + n * tile_bytes<F>(c.cols) + k * kStepBytes + S::kPrefetchBytes);
    decltype(S::template load_plain<F>(p)) w[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) w[n] = S::template load_plain<F>(p + n * tile_bytes<F>(c.cols) + k * kStepBytes);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n)
        acc[t][n] = S::template fma_plain<F>(w[n], x + t * x_stride + 4 * kStep<F> * k, acc[t][n]);
    }
  }
  const bool last = end * kStep<F> >= c.cols;
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const Output<S> out(c, tile + n, token);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      if (last && c.bias != nullptr) acc[t][n] = S::add(acc[t][n], S::load_n(c.bias + (tile + n) * kTile, out.n));
      out.store(t, acc[t][n]);
    }
  }
}

/// For many tokens the columns are cut so that the weights of 4 tiles stay in L1 while all tokens pass.
template <class S, class F>
void plain_matmul(const MatmulCall& c) {
  const int64_t steps = (c.cols + kStep<F> - 1) / kStep<F>;
  const int64_t step =
      c.m <= S::kPlainTokens ? steps : 512 / static_cast<int64_t>(sizeof(typename F::Block)) / kStep<F>;
  for (int64_t tile = c.tile_begin; tile < c.tile_end; tile += kPanelTiles) {
    const int64_t end = tile + kPanelTiles < c.tile_end ? tile + kPanelTiles : c.tile_end;
    for (int64_t k = 0; k < steps; k += step) {
      for (int64_t token = 0; token < c.m; token += S::kPlainTokens) {
        for (int64_t n = tile; n < end; n += S::kTiles) {
          with_constant<S::kPlainTokens>(c.m - token, [&]<int T>() {
            with_constant<S::kTiles>(end - n, [&]<int N>() {
              plain_block<S, F, T, N>(c, n, token, k, k + step < steps ? k + step : steps);
            });
          });
        }
      }
    }
  }
}

// ---- choice ------------------------------------------------------------

template <class S, class F>
void matmul_kernel(const MatmulCall& c) {
  if constexpr (F::block == 1) {
    plain_matmul<S, F>(c);
  } else if (c.m > S::kFewTokens) {
    many_tokens<S, F>(c);
  } else {
    with_constant<S::kFewTokens>(c.m, [&]<int T>() {
      for (int64_t tile = c.tile_begin; tile < c.tile_end; ++tile) matvec_tile<S, F, T>(c, tile, 0);
    });
  }
}

template <class S>
MatmulFn find_kernel(DType dtype) {
  MatmulFn found = nullptr;
  visit_format(dtype, [&]<class F>() { found = matmul_kernel<S, F>; });
  return found;
}

}  // namespace
}  // namespace infer::cpu
