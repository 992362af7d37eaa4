// The residual stream x as a stage's input: read from the exchange by every CTA, normed into activations, and the rows
// that this CTA will add to kept. Residual and norm are recomputed by every CTA, since an activation vector costs less
// to read than a barrier.
#pragma once

#include "kernels/cuda/decode_experts.cuh"
#include "kernels/cuda/decode_tokens.cuh"

namespace infer::cuda {

__device__ inline void decode_embedding_row(const EmbeddingArg& e, int row, float* x, int dim) {
  const uint8_t* from = e.table + e.ids[row] * e.row_bytes;
  visit_format(static_cast<DType>(e.dtype), [&]<class F>() {
    for (int g = threadIdx.x; g * kGroup < dim; g += kConsumers) {
      float w[kGroup];
      const int n = decode_row_group<F>(reinterpret_cast<const typename F::Block*>(from), g, dim, w);
      for (int i = 0; i < n; ++i) x[g * kGroup + i] = e.scale * w[i];
    }
  });
}

/// Behind the activations (of row m, or of all), until they are made: x of a row, f32 [dim], where it does not come
/// from the exchange as it is.
template <int M>
__device__ __forceinline__ float* shared_x(const DecodeStage& s, int m) {
  const DecodeContext& ctx = decode_context();
  const int dim = ctx.dim, of_int8 = (dim + 31) / 32 * 48;
  if (acts_by_token<M>(s)) return reinterpret_cast<float*>(decode_memory() + ctx.act + M * of_int8) + m * dim;
  const int bytes = s.form == ActForm::int8 ? of_int8 : s.form == ActForm::f32 ? dim * 4 : dim * 2;
  return reinterpret_cast<float*>(ctx.act_row(m) + bytes);
}
template <int M>
static __device__ __noinline__ void load_embedding(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  for (int m = 0; m < decode_context().n_rows; ++m)
    decode_embedding_row(s.embedding, m, shared_x<M>(s, m), decode_context().dim);
  consumer_sync();
}

/// Sums of squares of the last branch, where its norm is still to come.
__device__ __forceinline__ void reduce_branch(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  for (int m = 0; m < ctx.n_rows; ++m) {
    const float* branch = s.in + static_cast<int64_t>(m) * s.in_width + ctx.dim;
    float squares = 0;
    for (int i = threadIdx.x * 4; i < ctx.dim; i += kConsumers * 4) {
      const float4 b = poll4(branch + i);
      squares += b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) ctx.branch_reduce[m][this_warp()] = squares;
  }
  consumer_sync();
}

__device__ __forceinline__ float squares_of(float4 a, float4 b) {
  return a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w + b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
}
__device__ __forceinline__ float power_of_two(float x) { return __uint_as_float(__float_as_uint(x) & 0x7f800000u); }

/// Four floats that no kernel writes while this one runs.
__device__ __forceinline__ float4 load_constant4(const float* p) {
  float4 v;
  asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
  return v;
}

/// x with that branch added, each thread the values that it will want.
template <int M>
static __device__ __noinline__ void add_branch(uint32_t stage) {
  reduce_branch(stage);
  const DecodeStage& s = stage_at(stage);
  const DecodeContext& ctx = decode_context();
  for (int m = 0; m < ctx.n_rows; ++m) {
    const float* row = s.in + static_cast<int64_t>(m) * s.in_width;
    const float factor = s.post_scale * inverse_rms(total(ctx.branch_reduce[m]), ctx.dim, s.post_eps);
    for (int i = threadIdx.x * 8; i < ctx.dim; i += kConsumers * 8)
#pragma unroll
      for (int k = i; k < i + 8; k += 4) {
        float4 x = poll4(row + k);
        const float4 b = poll4(row + ctx.dim + k), w = load_constant4(s.post_norm + k);
        x.x += factor * (b.x * w.x), x.y += factor * (b.y * w.y);
        x.z += factor * (b.z * w.z), x.w += factor * (b.w * w.w);
        *reinterpret_cast<float4*>(shared_x<M>(s, m) + k) = x;
      }
  }
}

/// Whether x comes from shared memory: of the embedding, or with a branch that had still to be normed.
__device__ __forceinline__ bool makes_x(const DecodeStage& s) { return s.x_source != XSource::exchange; }
/// Eight values of row m of it, from i on.
template <int M>
__device__ __forceinline__ void load_shared_x(const DecodeStage& s, int m, int i, uint4& p, uint4& q) {
  const uint4* x = reinterpret_cast<const uint4*>(shared_x<M>(s, m) + i);
  p = x[0], q = x[1];
}

/// f16 does not reach as far as x may: there the power of two of the last norm's factor goes ahead. This finds one
/// where there was no norm before.
template <int M>
static __device__ __noinline__ void find_ahead(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  for (int m = 0; m < ctx.n_rows; ++m) {
    const float* row = s.in + static_cast<int64_t>(m) * s.in_width;
    float squares = 0;
    for (int i = threadIdx.x * 8; i < ctx.dim; i += kConsumers * 8) {
      uint4 p, q;
      if (makes_x(s)) {
        load_shared_x<M>(s, m, i, p, q);
      } else {
        p = load_relaxed4(row + i), q = load_relaxed4(row + i + 4);
        poll_on(row + i, p, q);
      }
      squares += squares_of(as_floats(p), as_floats(q));
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) ctx.reduce[m][this_warp()] = squares;
  }
  consumer_sync();
  if (const int m = this_warp(); m < ctx.n_rows) {
    const float power = power_of_two(inverse_rms(total(ctx.reduce[m]), ctx.dim, s.eps));
    if (threadIdx.x % 32 == 0) ctx.ahead[m] = power > 0 && isfinite(power) ? power : 1.0f;
  }
  consumer_sync();
}

/// What of x this CTA adds to when the branch is there: its tiles of the stage that does so. Kept from when all of x
/// was read, so that nothing is read again.
struct OwnTiles {
  int first, grid;
  int at, tile_bytes;  ///< of row 0 in decode_memory
  __device__ __forceinline__ OwnTiles(const DecodeStage& s, int n_rows)
      : first(static_cast<int>(blockIdx.x) - s.own_first_cta),
        grid(grid_size()),
        at(s.own_at),
        tile_bytes(n_rows * kTileRows * 4) {
    if (first < 0) first += grid;
    if (s.own_first_cta < 0) first = INT32_MAX;
  }
  /// Which of them has value i of a row, or -1.
  __device__ __forceinline__ int find(int i) const {
    const int wanted = static_cast<int>(static_cast<unsigned>(i) / kTileRows);
    for (int tile = first, k = 0; tile <= wanted; tile += grid, ++k)
      if (tile == wanted) return k;
    return -1;
  }
  /// Where values of row 0 from i on are kept in decode_memory, those of others kTileRows apart; -1: nowhere.
  __device__ __forceinline__ int place(int i) const {
    const int k = find(i);
    return k < 0 ? -1 : at + k * tile_bytes + (i & (kTileRows - 1)) * 4;
  }
};

/// Between launches of single stages x lies in memory.
__device__ __forceinline__ void save_x(const DecodeContext& ctx, int m, int i, uint4 p, uint4 q) {
  uint4* to = reinterpret_cast<uint4*>(ctx.x_save + static_cast<int64_t>(m) * ctx.dim + i);
  to[0] = p, to[1] = q;
}
static __device__ __noinline__ void fetch_own(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  int tile = static_cast<int>(blockIdx.x) - s.first_cta;
  if (tile < 0) tile += grid_size();
  for (int k = 0; tile < s.n_units; tile += grid_size(), ++k)
    for (int i = threadIdx.x; i < ctx.n_rows * kTileRows; i += kConsumers) {
      const int m = i / kTileRows, at = tile * kTileRows + i % kTileRows;
      if (at < ctx.dim) ctx.own(s.own_at, k, m)[i % kTileRows] = ctx.x_save[static_cast<int64_t>(m) * ctx.dim + at];
    }
}

/// How activations lie: 16 or 32 bits, or int8, a row at a time. (By token: decode_token_stage.cuh.)
enum class Acts { wide, rows };

/// x, then its norm into the activations, of which the factor 1 / rms is left to the epilogue. A thread takes eight
/// values of all rows at a time, all loads side by side: with 512 threads that is one trip to the L2 for a width of
/// 4096. A load into registers for which another one is under way waits for that, even where it is predicated off, so
/// each has its own place.
///
/// kRoutes: also makes this CTA's logits of the router and with them the choice of experts.
template <int M, Acts kActs, bool kRoutes = false>
static __device__ __noinline__ uint32_t stage_residual(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kStep = kConsumers * 8;
  // Asked for again, the thread's number would wait behind all the loads.
  const int t = static_cast<int>(kept_in_register(threadIdx.x)), warp = t / 32, lane = t % 32;
  const int dim = ctx.dim, n_rows = ctx.n_rows, width = s.in_width;
  const OwnTiles own(s, n_rows);
  const int n_groups = (dim + 31) / 32;
  const bool made = makes_x(s), scales = kActs == Acts::wide && s.form == ActForm::f16;
  if (made) s.x_source == XSource::embedding ? load_embedding<M>(stage) : add_branch<M>(stage);
  if (scales && (s.x_source == XSource::embedding || ctx.single)) find_ahead<M>(stage);
  const float* in = s.in;
  float squares[M] = {}, routed = 0;
  const RouterRow router(s.experts);
  if constexpr (kRoutes) router.fetch(s.experts, dim);
  for (int base = 0; base < dim; base += kStep) {
    const int i = base + t * 8;
    const bool valid = i < dim;
    uint4 p[M] = {}, q[M] = {};
    const bool exchanged = valid && !made;
    float4 w0{}, w1{};  // of the norm
    const auto load_norm = [&] {
      if (valid) w0 = load_constant4(s.norm + i), w1 = load_constant4(s.norm + i + 4);
    };
    if (M > 1) load_norm();  // before so many others
    load_rows<M>(in + i, width, n_rows, exchanged, p, q);
    if (M == 1) load_norm();
    const int keep = valid ? own.place(i) : -1;  // worked out while x is on its way
    poll_rows<M>(in + i, width, n_rows, exchanged, p, q);
    if (made && valid)
#pragma unroll
      for (int m = 0; m < M; ++m)
        if (m < n_rows) load_shared_x<M>(s, m, i, p[m], q[m]);
    if (keep >= 0)
#pragma unroll
      for (int m = 0; m < M; ++m)
        if (m < n_rows) {
          uint4* to = reinterpret_cast<uint4*>(decode_memory() + keep + m * kTileRows * 4);
          to[0] = p[m], to[1] = q[m];
          if (ctx.single) save_x(ctx, m, i, p[m], q[m]);
        }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= n_rows) break;
      float4 a = as_floats(p[m]), b = as_floats(q[m]);
      if (valid) {
        squares[m] += squares_of(a, b);
        a.x *= w0.x, a.y *= w0.y, a.z *= w0.z, a.w *= w0.w, b.x *= w1.x, b.y *= w1.y, b.z *= w1.z, b.w *= w1.w;
        if constexpr (kRoutes) {
          wait_for_copies();
          routed += router.dot(i, a, b);
        }
      }
      if constexpr (kActs == Acts::rows) {
        put_int8(ctx.act_row(m), n_groups, i, a, b, valid);
      } else if (valid) {
        const float ahead = scales ? ctx.ahead[m] : 1.0f;
        put_wide(s.form, ctx.act_row(m), i, {a.x * ahead, a.y * ahead, a.z * ahead, a.w * ahead});
        put_wide(s.form, ctx.act_row(m), i + 4, {b.x * ahead, b.y * ahead, b.z * ahead, b.w * ahead});
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float sum = warp_sum(squares[m]);
    if (lane == 0) ctx.reduce[m][warp] = sum;
  }
  if constexpr (kRoutes) {
    routed = warp_sum(routed);
    if (lane == 0) ctx.reduce[1][warp] = routed;  // a row that one token has no use for
  }
  const uint32_t walk = shared_address(&this_walk());
  consumer_sync();
  if (warp < n_rows) {  // read after the sums are complete, hence after a barrier
    const float inverse = inverse_rms(total(ctx.reduce[warp]), dim, s.eps);
    const float power = power_of_two(inverse);
    if (lane == 0) {
      ctx.factor[warp] = scales ? inverse / ctx.ahead[warp] : inverse;
      ctx.ahead[warp] = power > 0 && isfinite(power) ? power : 1.0f;  // for f16, should it come next
    }
    if constexpr (kRoutes) {
      send_logit(s.experts, total(ctx.reduce[1]) * inverse);
      make_choice(stage);
    }
  }
  return walk;
}

}  // namespace infer::cuda
