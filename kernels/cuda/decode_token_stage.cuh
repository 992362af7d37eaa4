// Inputs of three or four tokens as their products want them, side by side (decode_tokens.cuh). All loads, all shuffles
// and all stores of the tokens go together, without a branch between them: a token after the other, each waits by
// itself. What would be of a token that there is not is token 0 once more.
#pragma once

#include "kernels/cuda/decode_residual.cuh"
#include "kernels/kv_format.h"

namespace infer::cuda {

/// Four floats of plain memory, zeros beyond `left`.
__device__ __forceinline__ float4 load_plain(const float* p, int left) {
  if (left >= 4 && reinterpret_cast<uintptr_t>(p) % 16 == 0) return *reinterpret_cast<const float4*>(p);
  return {left > 0 ? p[0] : 0.0f, left > 1 ? p[1] : 0.0f, left > 2 ? p[2] : 0.0f, left > 3 ? p[3] : 0.0f};
}

/// The Walsh-Hadamard transform of `block` numbers that lie eight to a lane in neighbouring lanes, see kv_format.h.
__device__ __forceinline__ void hadamard_lanes(float4& a, float4& b, int block) {
  float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int half = 1; half < 8; half *= 2)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if ((i & half) == 0) {
        const float x = v[i], y = v[i + half];
        v[i] = x + y, v[i + half] = x - y;
      }
  for (int step = 1; step < block / 8; step *= 2)
#pragma unroll
    for (float& x : v) {
      const float other = __shfl_xor_sync(~0u, x, step);
      x = (threadIdx.x & step) != 0 ? other - x : x + other;
    }
  const float scale = hadamard_scale(block);
  a = {v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale};
  b = {v[4] * scale, v[5] * scale, v[6] * scale, v[7] * scale};
}

/// Eight words of each of M rows of the exchange, once none of the warp's is empty.
template <int M>
struct EightOfRows {
  uint4 v[M], w[M];
  const float* at[M];

  __device__ __forceinline__ void load(const float* first, int width, int n_rows) {
#pragma unroll
    for (int m = 0; m < M; ++m) at[m] = first + (m < n_rows ? m * width : 0);
    load();
  }
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int m = 0; m < M; ++m) load_relaxed8(at[m], v[m], w[m]);
  }
  __device__ __forceinline__ void poll() {
    uint32_t n = 0;
    while (true) {
      int least = INT32_MAX;
#pragma unroll
      for (int m = 0; m < M; ++m) least = min(least, min(smallest(v[m]), smallest(w[m])));
      const bool again = least == static_cast<int>(kEmpty);
      if (!__any_sync(~0u, again)) return;
      pause(n);
      if (again) load();
    }
  }
};

/// The warp's sums of four numbers of each lane, of number lane / 8 in each lane.
__device__ __forceinline__ float warp_sums(const float (&x)[4]) {
  const int lane = threadIdx.x % 32;
  const bool upper = lane & 16, odd = lane & 8;
  const float a = (upper ? x[2] : x[0]) + __shfl_xor_sync(~0u, upper ? x[0] : x[2], 16);
  const float b = (upper ? x[3] : x[1]) + __shfl_xor_sync(~0u, upper ? x[1] : x[3], 16);
  float sum = (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 8);
#pragma unroll
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

/// As stage_residual(). kMade: see makes_x().
template <int M, bool kMade>
static __device__ __noinline__ uint32_t stage_residual_tokens(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kStep = kConsumers * 8;
  // Asked for again, the thread's number would wait behind all the loads.
  const int t = static_cast<int>(kept_in_register(threadIdx.x)), warp = t / 32, lane = t % 32;
  const int dim = ctx.dim, n_rows = ctx.n_rows;
  const OwnTiles own(s, n_rows);
  if (kMade) s.x_source == XSource::embedding ? load_embedding<M>(stage) : add_branch<M>(stage);
  const TokenActs<M, 1> acts(ctx.act, dim / 32);
  float squares[4] = {};
  for (int base = 0; base < dim; base += kStep) {
    const int i = base + t * 8, column = i < dim ? i : 0;
    const float4 w0 = load_constant4(s.norm + column), w1 = load_constant4(s.norm + column + 4);
    EightOfRows<M> x;
    if constexpr (!kMade) x.load(s.in + column, s.in_width, n_rows);
    const int keep = i < dim ? own.place(i) : -1;  // worked out while x is on its way
    if constexpr (!kMade) {
      x.poll();
    } else {
#pragma unroll
      for (int m = 0; m < M; ++m) load_shared_x<M>(s, m < n_rows ? m : 0, column, x.v[m], x.w[m]);
    }
    if (keep >= 0) {
#pragma unroll
      for (int m = 0; m < M; ++m)
        if (m < n_rows) {
          uint4* to = reinterpret_cast<uint4*>(decode_memory() + keep + m * kTileRows * 4);
          to[0] = x.v[m], to[1] = x.w[m];
        }
      if (ctx.single)
#pragma unroll 1
        for (int m = 0; m < n_rows; ++m) {
          const uint4* from = reinterpret_cast<const uint4*>(decode_memory() + keep + m * kTileRows * 4);
          save_x(ctx, m, i, from[0], from[1]);
        }
    }
    float4 a[M], b[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      a[m] = as_floats(x.v[m]), b[m] = as_floats(x.w[m]);
      squares[m] += i < dim ? squares_of(a[m], b[m]) : 0.0f;
      a[m].x *= w0.x, a[m].y *= w0.y, a[m].z *= w0.z, a[m].w *= w0.w;
      b[m].x *= w1.x, b[m].y *= w1.y, b[m].z *= w1.z, b[m].w *= w1.w;
    }
    acts.put(i, a, b, i < dim);
  }
  const float sum = warp_sums(squares);
  if (lane % 8 == 0 && lane / 8 < M) ctx.reduce[lane / 8][warp] = sum;
  const uint32_t walk = shared_address(&this_walk());
  consumer_sync();
  if (warp < n_rows) {  // read after the sums are complete, hence after a barrier
    const float inverse = inverse_rms(total(ctx.reduce[warp]), dim, s.eps), power = power_of_two(inverse);
    if (lane == 0) {
      ctx.factor[warp] = inverse;
      ctx.ahead[warp] = power > 0 && isfinite(power) ? power : 1.0f;  // for f16, should it come next
    }
  }
  return walk;
}

/// As stage_vector().
template <int M>
static __device__ __noinline__ void stage_vector_tokens(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  const DecodeContext& ctx = decode_context();
  constexpr int kStep = kConsumers * 8;
  const int t = threadIdx.x, cols = s.cols, n_rows = ctx.n_rows, width = s.in_width;
  const bool exchanged = s.input != StageInput::plain;
  const float* in = s.in;
  const TokenActs<M, 1> acts(ctx.act, cols / 32);
  if (exchanged) scout_attention(s, in + (n_rows - 1) * width, cols);
  for (int base = 0; base < cols; base += kStep) {
    const int i = base + t * 8, column = i < cols ? i : 0;
    EightOfRows<M> x;
    if (exchanged) {
      x.load(in + column, width, n_rows);
      x.poll();
    } else {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float* from = in + (m < n_rows ? m * width : 0) + column;
        x.v[m] = as_words(load_plain(from, cols - column)), x.w[m] = as_words(load_plain(from + 4, cols - column - 4));
      }
    }
    float4 a[M], b[M];
#pragma unroll
    for (int m = 0; m < M; ++m) a[m] = as_floats(x.v[m]), b[m] = as_floats(x.w[m]);
    if (s.in_rotation > 1)
#pragma unroll
      for (int m = 0; m < M; ++m) hadamard_lanes(a[m], b[m], s.in_rotation);
    acts.put(i, a, b, i < cols);
  }
  consumer_sync();
}

/// As stage_hidden_codes(): half a group of all tokens to a thread, and twice that side by side.
template <int M>
static __device__ __noinline__ void stage_hidden_tokens(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  const DecodeContext& ctx = decode_context();
  constexpr int kTwice = 2;
  const int t = static_cast<int>(kept_in_register(threadIdx.x)), n_rows = ctx.n_rows;
  const int n = s.cols / 16, width = s.in_width;
  const uint8_t* codes = s.in_codes;
  const float* scales = s.in;
  const TokenActs<M, 2> acts(ctx.act, n / 2);
  scout_soon(s, false);
  for (int base = 0; base < n; base += kTwice * kConsumers) {  // whole warps
    uint4 code[kTwice][M];
    uint32_t scale[kTwice][M];
    const auto load = [&] {
#pragma unroll
      for (int k = 0; k < kTwice; ++k) {
        const int i = base + k * kConsumers + t, half = i < n ? i : 0;
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const int row = m < n_rows ? m : 0;
          code[k][m] = load_relaxed4(codes + row * s.cols + half * 16);
          scale[k][m] = load_relaxed(scales + row * width + half);
        }
      }
    };
    load();
    uint32_t tries = 0;
    while (true) {
      int least_code = INT32_MAX, least_scale = INT32_MAX;
#pragma unroll
      for (int k = 0; k < kTwice; ++k)
#pragma unroll
        for (int m = 0; m < M; ++m) {
          least_code = min(least_code, smallest(code[k][m]));
          least_scale = min(least_scale, static_cast<int>(scale[k][m]));
        }
      const bool again = least_code == static_cast<int>(kEmptyCodes) || least_scale == static_cast<int>(kEmpty);
      if (!__any_sync(~0u, again)) break;
      pause(tries);
      if (again) load();
    }
#pragma unroll
    for (int k = 0; k < kTwice; ++k) {
      const int i = base + k * kConsumers + t;
      if (i < n) acts.put_codes(i / 2, i % 2, code[k], scale[k]);
    }
  }
  consumer_sync();
}

}  // namespace infer::cuda
