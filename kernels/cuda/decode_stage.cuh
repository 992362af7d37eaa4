// What comes before the dot products of a stage: bringing the input into shared memory in the form the weights want.
#pragma once

#include "kernels/cuda/decode_token_stage.cuh"

namespace infer::cuda {

/// f32 values of the exchange (or of plain memory) into activations, eight to a thread. What is rare comes before the
/// loop over rows, which is all there is else.
template <int M, Acts kActs>
static __device__ __noinline__ void stage_vector(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kStep = kConsumers * 8;
  const int t = static_cast<int>(kept_in_register(threadIdx.x)), cols = s.cols, n_groups = (cols + 31) / 32;
  const int n_rows = ctx.n_rows, width = s.in_width;
  const bool exchanged = s.input != StageInput::plain;
  const float* in = s.in;
  if (exchanged) scout_attention(s, in + (n_rows - 1) * width, cols);
  for (int base = 0; base < cols; base += kStep) {
    const int i = base + t * 8;
    const bool valid = i < cols;
    uint4 p[M] = {}, q[M] = {};
    load_rows<M>(in + i, width, n_rows, exchanged && valid, p, q);  // whole sixteens
    poll_rows<M>(in + i, width, n_rows, exchanged && valid, p, q);
    if (!exchanged && valid)
#pragma unroll
      for (int m = 0; m < M; ++m)
        if (m < n_rows) {
          const float* from = row_of<M>(in, m, width) + i;
          p[m] = as_words(load_plain(from, cols - i)), q[m] = as_words(load_plain(from + 4, cols - i - 4));
        }
    if (s.in_rotation > 1)
#pragma unroll
      for (int m = 0; m < M; ++m) {
        float4 a = as_floats(p[m]), b = as_floats(q[m]);
        hadamard_lanes(a, b, s.in_rotation);
        p[m] = as_words(a), q[m] = as_words(b);
      }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= n_rows) break;
      const float4 a = as_floats(p[m]), b = as_floats(q[m]);
      if constexpr (kActs == Acts::rows) {
        put_int8(ctx.act_row(m), n_groups, i, a, b, valid);
      } else if (valid) {
        put_wide(s.form, ctx.act_row(m), i, a);
        if (i + 4 < cols) put_wide(s.form, ctx.act_row(m), i + 4, b);
      }
    }
  }
  if constexpr (kActs == Acts::wide) {  // up to the 16 bytes that the last load of a row may take
    const int size = s.form == ActForm::f32 ? 4 : 2, from = (cols + 3) / 4 * 4 * size,
              to = (cols * size + 15) / 16 * 16;
    for (int m = 0; m < ctx.n_rows; ++m)
      if (from + t < to) ctx.act_row(m)[from + t] = 0;
  }
  consumer_sync();
}
template <int M>
__device__ __forceinline__ void stage_any_vector(const DecodeStage& s, uint32_t stage) {
  s.form == ActForm::int8 ? stage_vector<M, Acts::rows>(stage) : stage_vector<M, Acts::wide>(stage);
}

/// Groups of 16 that gate and up have quantised already, two to a thread, of all rows side by side.
template <int M>
static __device__ __noinline__ void stage_hidden_codes(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kOnes = 0x01010101;
  const int cols = s.cols, n_groups = cols / 32;
  const uint8_t* codes = s.in_codes;
  const float* scales = s.in;
  const auto sum = [&](uint4 c) {
    const int half = __dp4a(static_cast<int>(c.x), kOnes, __dp4a(static_cast<int>(c.y), kOnes, 0));
    return static_cast<float>(__dp4a(static_cast<int>(c.z), kOnes, __dp4a(static_cast<int>(c.w), kOnes, half)));
  };
  const int t = static_cast<int>(kept_in_register(threadIdx.x));
  scout_soon(s, false);
  for (int base = 0; base < n_groups; base += kConsumers) {  // whole warps, as in poll_rows
    const int g = base + t;
    uint4 low[M] = {}, high[M] = {};
    uint2 both[M] = {};
    const auto load = [&] {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (M > 1 && m >= ctx.n_rows) break;
        const uint8_t* from = row_of<M>(codes, m, cols) + g * 32;
        low[m] = load_relaxed4(from), high[m] = load_relaxed4(from + 16);
        both[m] = load_relaxed2(row_of<M>(scales, m, s.in_width) + 2 * g);
      }
    };
    const auto any = [&] {
      bool empty = false;
#pragma unroll
      for (int m = 0; m < M; ++m)
        empty = empty || any_empty(low[m], kEmptyCodes) || any_empty(high[m], kEmptyCodes) || both[m].x == kEmpty ||
                both[m].y == kEmpty;
      return empty;
    };
    uint32_t n = 0;
    if (g < n_groups) load();
    if constexpr (M == 1) {
      while (any()) pause(n), load();
      __syncwarp();
    } else {
      while (true) {
        const bool empty = any();
        if (!__any_sync(~0u, empty)) break;
        pause(n);
        if (empty) load();
      }
    }
    if (g >= n_groups) break;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (M > 1 && m >= ctx.n_rows) break;
      const float2 scale = make_float2(__uint_as_float(both[m].x), __uint_as_float(both[m].y));
      uint8_t* row = ctx.act_row(m);
      reinterpret_cast<uint4*>(row)[g] = low[m];
      reinterpret_cast<uint4*>(row)[n_groups + g] = high[m];
      reinterpret_cast<float2*>(row + n_groups * 32)[g] = scale;
      reinterpret_cast<float2*>(row + n_groups * 40)[g] = make_float2(scale.x * sum(low[m]), scale.y * sum(high[m]));
    }
  }
  consumer_sync();
}

/// Hidden values that gate and up have rounded already, eight to a load and several loads side by side.
template <int M>
static __device__ __noinline__ void stage_hidden_pairs(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kAtOnce = M == 1 ? 4 : 8;
  const int n = s.cols / 8, end = ctx.n_rows * n;
  const float* in = s.in;
  const int t = static_cast<int>(kept_in_register(threadIdx.x));
  scout(in + (ctx.n_rows - 1) * s.in_width, s.cols / 2);
  for (int base = 0; base < end; base += kAtOnce * kConsumers) {  // whole warps, as in poll_rows
    const int first = base + t;
    uint4 v[kAtOnce] = {};
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * kConsumers;
        int m = 0;
#pragma unroll
        for (int other = 1; other < M; ++other) m += i >= other * n;
        if (i < end) f(v[k], m, i - m * n);
      }
    };
    uint32_t tries = 0;
    while (true) {
      each([&](uint4& x, int m, int i) { x = load_relaxed4(in + m * s.in_width + i * 4); });
      bool empty = false;
      each([&](uint4& x, int, int) { empty = empty || any_empty(x); });
      if (!empty) break;
      pause(tries);
    }
    __syncwarp();
    each([&](uint4& x, int m, int i) { reinterpret_cast<uint4*>(ctx.act_row(m))[i] = x; });
  }
  consumer_sync();
}

/// Whether hidden values of this form pass as pairs of 16 bits.
__device__ __forceinline__ bool is_pair_form(ActForm form) { return form == ActForm::f16 || form == ActForm::bf16; }

/// Whether this CTA has units of the stage.
__device__ __forceinline__ bool has_units(const DecodeStage& s) {
  int first = static_cast<int>(blockIdx.x) - s.first_cta;
  if (first < 0) first += grid_size();
  return first < s.n_units;
}

/// Of the two products of experts.
static __device__ __noinline__ uint32_t experts_input(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  if (s.output == StageOutput::hidden)
    return s.form == ActForm::int8 ? stage_residual<1, Acts::rows, true>(stage)
                                   : stage_residual<1, Acts::wide, true>(stage);
  if (decode_context().single && this_warp() == 0) make_choice(stage);  // again
  if (has_units(s)) {
    if (s.form == ActForm::int8) {
      stage_hidden_codes<1>(stage);
    } else if (is_pair_form(s.form)) {
      stage_hidden_pairs<1>(stage);
    } else {
      stage_any_vector<1>(s, stage);
    }
  }
  return shared_address(&this_walk());
}

template <int M>
__device__ __forceinline__ uint32_t residual_input(const DecodeStage& s, uint32_t stage) {
  if constexpr (M == kMaxDecodeRows)
    if (acts_by_token<M>(s))
      return makes_x(s) ? stage_residual_tokens<M, true>(stage) : stage_residual_tokens<M, false>(stage);
  return s.form == ActForm::int8 ? stage_residual<M, Acts::rows>(stage) : stage_residual<M, Acts::wide>(stage);
}
template <int M>
__device__ __forceinline__ void other_input(const DecodeStage& s, uint32_t stage) {
  const bool hidden = s.input == StageInput::hidden;
  if constexpr (M == kMaxDecodeRows)
    if (acts_by_token<M>(s)) return hidden ? stage_hidden_tokens<M>(stage) : stage_vector_tokens<M>(stage);
  if (hidden && s.form == ActForm::int8) return stage_hidden_codes<M>(stage);
  if (hidden && is_pair_form(s.form)) return stage_hidden_pairs<M>(stage);
  stage_any_vector<M>(s, stage);
}

/// Returns where this warp's walk lies. (stage_residual knows; others would return it through local memory.)
template <int M, bool kExperts>
__device__ __forceinline__ uint32_t stage_input(const DecodeStage& s, uint32_t walk) {
  const uint32_t stage = shared_address(&s);
  if (s.output == StageOutput::residual && decode_context().single) fetch_own(stage);
  if (kExperts && s.n_active > 0) {
    walk = experts_input(stage);
  } else if (s.input == StageInput::residual) {
    walk = residual_input<M>(s, stage);
  } else if (has_units(s)) {
    other_input<M>(s, stage);
    walk = shared_address(&this_walk());
  }
  const DecodeStage& same = decode_stages()[walk_at(walk).which];
  if (same.form == ActForm::int8 && same.cols % 32 != 0) {
    for (int m = 0; m < decode_context().n_rows; ++m) pad_row(same.form, decode_context().act_row(m), same.cols);
    consumer_sync();
  }
  return walk;
}

}  // namespace infer::cuda
