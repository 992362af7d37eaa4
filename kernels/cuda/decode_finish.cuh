// What comes after the dot products of a stage: finishing the sums of the CTA's tiles (bias, norm factor, activation,
// quantisation), and off to the other CTAs.
#pragma once

#include "kernels/cuda/decode_stage.cuh"

namespace infer::cuda {

/// What the norm left to do.
__device__ __forceinline__ float row_factor(const DecodeStage& s, const DecodeContext& ctx, int m) {
  return s.input == StageInput::residual ? ctx.factor[m] : 1.0f;
}

/// Of row `row` of the tile whose sums lie in `slot`; all loads side by side.
template <int M>
__device__ __forceinline__ float slot_sum(const MatrixArg& w, int slot, int m, int row) {
  const auto [first, n] = sums_of_row<M>(w, row);
  const float* sums = decode_context().sums<M>(slot) + (first * M + m) * kTileRows + row;
  float part[kWarps];
#pragma unroll
  for (int i = 0; i < kWarps; ++i) part[i] = i < n ? sums[i * M * kTileRows] : 0.0f;
#pragma unroll
  for (int step = 1; step < kWarps; step *= 2)
#pragma unroll
    for (int i = 0; i + step < kWarps; i += 2 * step) part[i] += part[i + step];
  return part[0];
}

__device__ __forceinline__ float activated(float gate, float up, bool gelu) {
  if (gelu) return 0.5f * gate * (1.0f + tanhf(0.7978845608028654f * (gate + 0.044715f * gate * gate * gate))) * up;
  return gate / (1.0f + __expf(-gate)) * up;
}

/// Sixteen neighbouring lanes hold the sixteen values of a unit: quantises and publishes them.
__device__ __forceinline__ void put_hidden_codes(const DecodeStage& s, int m, int unit, int row, float v, bool valid) {
  float largest = isfinite(v) ? fabsf(v) : __uint_as_float(0x7f800000u);
#pragma unroll
  for (int step = 8; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  const float inverse = largest > 1e-30f && largest < 1e38f ? __fdividef(127.0f, largest) : 0.0f;
  uint32_t code = static_cast<uint32_t>(__float2int_rn((isfinite(v) ? v : 0.0f) * inverse)) & 255;
  code |= __shfl_down_sync(~0u, code, 1) << 8;   // of lanes 4k: codes k, k + 1
  code |= __shfl_down_sync(~0u, code, 2) << 16;  // and k + 2, k + 3
  if (!valid) return;
  const int64_t at = int64_t{m} * s.w[0].rows + unit * 16 + row, of_scale = int64_t{m} * s.out_width + unit;
  if (row % 4 == 0) put_codes(s.out_codes + at, s.other_codes + at, code);
  if (row == 0) {
    float scale = largest > 1e-30f ? largest * (1.0f / 127.0f) : 0.0f;
    if (!(largest < 1e38f)) scale = __uint_as_float(0x7fc00000u);
    put(s.out + of_scale, s.other + of_scale, scale);
  }
}

/// Two neighbouring lanes hold two values of a row: rounds and publishes them as one word. No half of it is a -0, so
/// that none is empty.
__device__ __forceinline__ void put_hidden_pair(const DecodeStage& s, int m, int at, float v, bool valid) {
  const uint16_t bits = s.hidden_form == ActForm::bf16 ? f32_to_bf16(v) : f32_to_f16(clamp_half(v));
  const uint32_t half = bits == 0x8000 ? 0 : bits, word = half | __shfl_down_sync(~0u, half, 1) << 16;
  if (!valid || at % 2 != 0) return;
  const int64_t i = int64_t{m} * s.out_width + at / 2;
  store_relaxed(s.out + i, word);
  store_relaxed(s.other + i, kEmpty);
}

/// Where a value of the exchange goes, and the place in the other copy that it empties.
struct ExchangePlace {
  float *now, *other;
};
__device__ __forceinline__ ExchangePlace exchange_place(const DecodeStage& s, int m, int at) {
  const int64_t i = int64_t{m} * s.out_width + at;
  return {s.out + i, s.other + i};
}

/// Gate and up of a unit become a hidden value; `i` counts units, rows and tokens, of which there are n whole units.
template <int M, bool kExperts>
__device__ __forceinline__ void finish_hidden(const DecodeStage& s, const DecodeContext& ctx, int first_unit, int n,
                                              int i) {
  const int row = i % 16, m = i / 16 % M, u = i / (16 * M), unit = first_unit + u * grid_size();
  const int at = unit * 16 + row;
  const bool mine = i / 32 * 32 < n * 16 * M;  // whole warps: lanes quantise together
  bool real = false;
  float gate_bias = 0, up_bias = 0;
  int expert = -1;
  if (mine) {
    real = u < n && m < ctx.n_rows && at < s.w[0].rows;
    if (real && s.w[0].bias) gate_bias = s.w[0].bias[at];
    if (real && s.w[1].bias) up_bias = s.w[1].bias[at];
    if (kExperts && s.n_active > 0) expert = unit / s.experts.n_tiles;
  }
  consumer_sync();
  if (!mine) return;
  float v = 0;
  if (real) {
    const float factor = row_factor(s, ctx, m);
    const float gate = slot_sum<M>(s.w[0], 2 * u, m, row), up = slot_sum<M>(s.w[1], 2 * u + 1, m, row);
    v = activated(fmaf(gate, factor, gate_bias), fmaf(up, factor, up_bias), s.gelu);
    if (kExperts && expert >= 0) v *= chosen_experts().weights[expert];
  }
  if (s.hidden_form == ActForm::int8) {
    put_hidden_codes(s, m, unit, row, v, real);
  } else if (is_pair_form(s.hidden_form)) {
    put_hidden_pair(s, m, at, v, real);
  } else if (real) {
    const ExchangePlace place = exchange_place(s, m, at);
    put(place.now, place.other, v);
  }
}

/// Any other output.
template <int M>
__device__ __forceinline__ void finish_rows(const DecodeStage& s, const DecodeContext& ctx, int first_unit, int n,
                                            int i) {
  const int row = i % 16, m = i / 16 % M, u = i / (16 * M);
  bool real = u < n && m < ctx.n_rows;
  const MatrixArg* w = s.w;
  int at = 0;
  float bias = 0;
  ExchangePlace place{};
  const float* x = nullptr;
  if (real) {
    int tile = first_unit + u * grid_size();
    for (; tile >= w->n_tiles; ++w) tile -= w->n_tiles;
    const int r = tile * 16 + row;
    at = w->out_offset + r;
    real = r < w->rows;
    if (real && w->bias) bias = w->bias[r];
    place = exchange_place(s, m, at);
    int own = u;  // of a residual output: which of this CTA's tiles
    for (int before = first_unit; before >= grid_size(); before -= grid_size()) ++own;
    x = ctx.own(s.own_at, own, m) + row;
  }
  consumer_sync();
  if (!real) return;
  float v = fmaf(slot_sum<M>(*w, u, m, row), row_factor(s, ctx, m), bias);
  if (s.output == StageOutput::residual) {
    if (s.out_width == ctx.dim) return put(place.now, place.other, fmaf(s.residual_scale, v, *x));
    put(place.now, place.other, *x);
    return put(place.now + ctx.dim, place.other + ctx.dim, v);
  }
  if (s.output == StageOutput::vector) return put(place.now, place.other, v);
  float* to = s.out + static_cast<int64_t>(m) * s.out_width + at;
  if (s.output == StageOutput::logits) {
    v *= s.logit_scale;
    if (s.softcap > 0) v = s.softcap * tanhf(v / s.softcap);
  } else if (s.accumulate) {
    v += *to;
  }
  *to = v;
}

/// Waits for the sums of all warps and finishes the units whose sums lie in the slots, a value a thread. What can be
/// known before is looked up before.
template <int M, bool kExperts>
__device__ __noinline__ void finish_units(uint32_t walk_address, AfterRun after) {
  const WarpWalk& of_warp = walk_at(walk_address);
  const DecodeStage& s = decode_stages()[of_warp.which];
  const DecodeContext& ctx = decode_context();
  const TileWalk& walk = of_warp.tiles;
  const int first_unit = walk.first, n = s.n_parts == 2 ? walk.kept / 2 : walk.kept;
  static_assert(kept_tiles(M, 1) * kTileRows * M <= kConsumers && kept_tiles(M, 2) / 2 * kTileRows * M <= kConsumers);
  const bool hidden = s.output == StageOutput::hidden;
  if (hidden && s.n_soon > 0 && after == AfterRun::finish) announce(static_cast<int>(blockIdx.x));
  if (hidden) {
    finish_hidden<M, kExperts>(s, ctx, first_unit, n, static_cast<int>(threadIdx.x));
  } else {
    finish_rows<M>(s, ctx, first_unit, n, static_cast<int>(threadIdx.x));
  }
}

}  // namespace infer::cuda
