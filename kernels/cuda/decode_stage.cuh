// What comes before the dot products of a stage: bringing the input into shared memory in the form the weights want.
// Residual and norm are recomputed by every CTA, since an activation vector costs less to read than a barrier.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_dot.cuh"
#include "kernels/cuda/exchange.cuh"
#include "kernels/cuda/int8_codes.cuh"
#include "kernels/kv_format.h"

namespace infer::cuda {

/// All consumer threads of the CTA.
__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 2, %0;" ::"n"(kConsumers) : "memory"); }

/// The sum over the warps of what each left in `of_warps`, f32 [kWarps] at a multiple of 16 bytes.
__device__ __forceinline__ float total(const float* of_warps) {
  float4 sums[kWarps / 4];
#pragma unroll
  for (int i = 0; i < kWarps / 4; ++i) sums[i] = reinterpret_cast<const float4*>(of_warps)[i];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps / 4; ++i) sum += (sums[i].x + sums[i].y) + (sums[i].z + sums[i].w);
  return sum;
}
__device__ __forceinline__ float inverse_rms(float sum_of_squares, int n, float eps) {
  return rsqrtf(__fdividef(sum_of_squares, static_cast<float>(n)) + eps);
}

/// Quantises the 16 values of two neighbouring lanes (i: index of this lane's first, a multiple of 8) into an int8
/// activation row. A group that holds a NaN or an infinity gets a scale that is one.
__device__ __forceinline__ void put_int8(uint8_t* row, int n_groups, int i, float4 a, float4 b, bool valid) {
  float largest = max_nan(max_nan(max_nan(fabsf(a.x), fabsf(a.y)), max_nan(fabsf(a.z), fabsf(a.w))),
                          max_nan(max_nan(fabsf(b.x), fabsf(b.y)), max_nan(fabsf(b.z), fabsf(b.w))));
  largest = max_nan(largest, __shfl_xor_sync(~0u, largest, 1));
  const float inverse = largest > 1e-30f ? __fdividef(127.0f, largest) : 0.0f;
  const uint32_t low = four_codes(a, inverse), high = four_codes(b, inverse);
  constexpr int kOnes = 0x01010101;
  int sum = __dp4a(static_cast<int>(low), kOnes, __dp4a(static_cast<int>(high), kOnes, 0));
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (!valid) return;
  const int group = i / 32, half = i / 16 % 2;
  reinterpret_cast<uint2*>(row)[(half * n_groups + group) * 2 + i / 8 % 2] = make_uint2(low, high);
  if (i % 16 == 0) {
    const float scale = largest <= 1e-30f ? 0.0f : largest * (1.0f / 127.0f);  // NaN stays NaN
    reinterpret_cast<float*>(row + n_groups * 32)[2 * group + half] = scale;
    reinterpret_cast<float*>(row + n_groups * 40)[2 * group + half] = scale * static_cast<float>(sum);
  }
}

__device__ __forceinline__ float clamp_half(float v) { return v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v; }

/// Four values into a row of 16- or 32-bit activations.
__device__ __forceinline__ void put_wide(ActForm form, uint8_t* row, int i, float4 v) {
  if (form == ActForm::f32) {
    reinterpret_cast<float4*>(row)[i / 4] = v;
  } else if (form == ActForm::bf16) {
    const uint32_t a = f32_to_bf16(v.x) | static_cast<uint32_t>(f32_to_bf16(v.y)) << 16;
    const uint32_t b = f32_to_bf16(v.z) | static_cast<uint32_t>(f32_to_bf16(v.w)) << 16;
    reinterpret_cast<uint2*>(row)[i / 4] = make_uint2(a, b);
  } else {
    const uint32_t a = f32_to_f16(clamp_half(v.x)) | static_cast<uint32_t>(f32_to_f16(clamp_half(v.y))) << 16;
    const uint32_t b = f32_to_f16(clamp_half(v.z)) | static_cast<uint32_t>(f32_to_f16(clamp_half(v.w))) << 16;
    reinterpret_cast<uint2*>(row)[i / 4] = make_uint2(a, b);
  }
}

/// Zeros behind a row that is no multiple of 32 (int8) or 16 bytes.
__device__ inline void pad_row(ActForm form, uint8_t* row, int cols) {
  const int t = threadIdx.x;
  if (form == ActForm::int8 && cols % 32 == 16 && t == 0) {
    const int n_groups = (cols + 31) / 32, g = n_groups - 1;
    reinterpret_cast<uint4*>(row)[n_groups + g] = uint4{};
    reinterpret_cast<float*>(row + n_groups * 32)[2 * g + 1] = 0;
    reinterpret_cast<float*>(row + n_groups * 40)[2 * g + 1] = 0;
  }
}

/// Numbers the threads so that the first ones are not those that have just finished sums and come last.
__device__ __forceinline__ int helper_thread() { return this_thread() ^ kConsumers / 2; }

/// One warp waits for the end of the vector, so that 512 threads do not poll while others still compute. Where the wait
/// is short that costs a trip to the L2 more than it saves.
__device__ __forceinline__ void scout(const float* row, int width) {
  if (const int t = helper_thread(); t < 32) {
    const int i = width - 4 * (t + 1);
    if (i >= 0) poll4(row + i);
  }
  consumer_sync();
}

/// Says that results are near: those of part `part` of attention, or of CTA `part` in gate and up. By one thread, when
/// nothing but sums of this CTA's warps is missing.
__device__ __forceinline__ void announce(int part) {
  if (threadIdx.x != 0) return;
  const DecodeStage& s = current_stage();
  put(s.soon + part, s.soon_other + part, 1);
}

/// The same where results are announced: until all are near, which `known` says without a look. Then all threads ask
/// for them, and no trip to the L2 lies between the results and those who want them.
__device__ __forceinline__ void scout_soon(const DecodeStage& s, bool known) {
  for (int i = helper_thread(); i < s.n_soon && !known; i += kConsumers) {
    uint32_t word = load_relaxed(s.soon + i);
    poll_on(s.soon + i, word);
  }
  consumer_sync();
}

/// Before results of attention. Where parts of it are split, all CTAs are done at about the same time.
__device__ __forceinline__ void scout_attention(const DecodeStage& s, const float* row, int width) {
  if (s.n_soon == 0 || decode_context().single || this_walk().meets) return scout(row, width);
  scout_soon(s, this_walk().attended);
}

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

/// Behind the activations of row m, until they are made: its embedding, f32 [dim].
__device__ __forceinline__ float* embedded(const DecodeStage& s, int m) {
  const int dim = decode_context().dim, of_int8 = (dim + 31) / 32 * 48;
  const int bytes = s.form == ActForm::int8 ? of_int8 : s.form == ActForm::f32 ? dim * 4 : dim * 2;
  return reinterpret_cast<float*>(decode_context().act_row(m) + bytes);
}
static __device__ __noinline__ void load_embedding(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  for (int m = 0; m < decode_context().n_rows; ++m)
    decode_embedding_row(s.embedding, m, embedded(s, m), decode_context().dim);
  consumer_sync();
}

/// Sums of squares of the last branch, where its norm is still to come.
static __device__ __noinline__ void reduce_branch(uint32_t stage) {
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

/// Where x comes from, looked up before it is waited for.
struct StreamSource {
  bool starts;             ///< from the embedding
  const float* post_norm;  ///< of the last branch, still to come; or null
  __device__ __forceinline__ explicit StreamSource(const DecodeStage& s)
      : starts(s.starts != 0), post_norm(s.post_norm) {}
};

/// Eight values of x in row m, from i on: as soon as they are there, from what first loads have found.
__device__ __forceinline__ void finish_x(const StreamSource& from, const DecodeStage& s, const DecodeContext& ctx,
                                         const float* row, int m, int i, uint4 p, uint4 q, float4& a, float4& b) {
  if (from.starts) {
    const float4* x = reinterpret_cast<const float4*>(embedded(s, m) + i);
    a = x[0], b = x[1];
    return;
  }
  poll_on(row + i, p, q);
  a = as_floats(p), b = as_floats(q);
  if (!from.post_norm) return;
  const float factor = s.post_scale * inverse_rms(total(ctx.branch_reduce[m]), ctx.dim, s.post_eps);
  const float4 c = poll4(row + ctx.dim + i), d = poll4(row + ctx.dim + i + 4);
  const float4 u = load_constant4(from.post_norm + i), v = load_constant4(from.post_norm + i + 4);
  a.x += factor * (c.x * u.x), a.y += factor * (c.y * u.y), a.z += factor * (c.z * u.z), a.w += factor * (c.w * u.w);
  b.x += factor * (d.x * v.x), b.y += factor * (d.y * v.y), b.z += factor * (d.z * v.z), b.w += factor * (d.w * v.w);
}

/// f16 does not reach as far as x may: there the power of two of the last norm's factor goes ahead. This finds one
/// where there was no norm before.
static __device__ __noinline__ void find_ahead(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  const StreamSource source(s);
  for (int m = 0; m < ctx.n_rows; ++m) {
    const float* row = s.in + static_cast<int64_t>(m) * s.in_width;
    float squares = 0;
    for (int i = threadIdx.x * 8; i < ctx.dim; i += kConsumers * 8) {
      float4 a, b;
      uint4 p{}, q{};
      if (!source.starts) p = load_relaxed4(row + i), q = load_relaxed4(row + i + 4);
      finish_x(source, s, ctx, row, m, i, p, q, a, b);
      squares += squares_of(a, b);
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

/// What of x this CTA adds to when the branch is there: its tiles of the stage that does so. Kept from when all of x was
/// read, so that nothing is read again.
struct OwnTiles {
  int first, grid, copy;
  __device__ __forceinline__ explicit OwnTiles(const DecodeStage& s)
      : first(static_cast<int>(blockIdx.x) - s.own_first_cta), grid(grid_size()), copy(s.own_copy) {
    if (first < 0) first += grid;
    if (s.own_first_cta < 0) first = INT32_MAX;
  }
  /// Which of them has value i of a row, or -1.
  __device__ __forceinline__ int find(int i) const {
    for (int tile = first, k = 0; tile <= i / kTileRows; tile += grid, ++k)
      if (tile == i / kTileRows) return k;
    return -1;
  }
  /// Eight values of row m from i on, which tile k has.
  __device__ __forceinline__ void keep(const DecodeContext& ctx, int k, int m, int i, float4 a, float4 b) const {
    if (k < 0) return;
    float4* to = reinterpret_cast<float4*>(ctx.own(copy, k, m) + i % kTileRows);
    to[0] = a, to[1] = b;
    if (!ctx.single) return;
    to = reinterpret_cast<float4*>(ctx.x_save + static_cast<int64_t>(m) * ctx.dim + i);
    to[0] = a, to[1] = b;
  }
};

/// Between launches of single stages those tiles lie in memory.
static __device__ __noinline__ void fetch_own(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  int tile = static_cast<int>(blockIdx.x) - s.first_cta;
  if (tile < 0) tile += grid_size();
  for (int k = 0; tile < s.n_units; tile += grid_size(), ++k)
    for (int i = threadIdx.x; i < ctx.n_rows * kTileRows; i += kConsumers) {
      const int m = i / kTileRows, at = tile * kTileRows + i % kTileRows;
      if (at < ctx.dim) ctx.own(s.own_copy, k, m)[i % kTileRows] = ctx.x_save[static_cast<int64_t>(m) * ctx.dim + at];
    }
}

/// x, then its norm into the activations, of which the factor 1 / rms is left to the epilogue. A thread takes eight
/// values of all rows at a time, all loads side by side: with 512 threads that is one trip to the L2 for a width of
/// 4096. A load into registers for which another one is under way waits for that, even where it is predicated off, so
/// each has its own place.
template <int M, bool kInt8>
static __device__ __noinline__ uint32_t stage_residual(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kStep = kConsumers * 8;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32, dim = ctx.dim, n_rows = ctx.n_rows, width = s.in_width;
  const int n_groups = (dim + 31) / 32;
  const StreamSource source(s);
  if (source.starts) {
    load_embedding(stage);
  } else if (source.post_norm) {
    reduce_branch(stage);
  }
  const bool scales = !kInt8 && s.form == ActForm::f16;
  if (scales && (source.starts || ctx.single)) find_ahead(stage);
  const float* in = s.in;
  const OwnTiles own(s);
  float squares[M] = {};
  for (int base = 0; base < dim; base += kStep) {
    const int i = base + t * 8;
    const bool valid = i < dim;
    uint4 p[M] = {}, q[M] = {};
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (valid && !source.starts && m < n_rows)
        p[m] = load_relaxed4(in + m * width + i), q[m] = load_relaxed4(in + m * width + i + 4);
    float4 w0{}, w1{};  // of the norm
    if (valid) w0 = load_constant4(s.norm + i), w1 = load_constant4(s.norm + i + 4);
    const int kept = valid ? own.find(i) : -1;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= n_rows) break;
      float4 a{}, b{};
      if (valid) {
        finish_x(source, s, ctx, in + m * width, m, i, p[m], q[m], a, b);
        own.keep(ctx, kept, m, i, a, b);
        squares[m] += squares_of(a, b);
        a.x *= w0.x, a.y *= w0.y, a.z *= w0.z, a.w *= w0.w, b.x *= w1.x, b.y *= w1.y, b.z *= w1.z, b.w *= w1.w;
      }
      if constexpr (kInt8) {
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
  const uint32_t walk = shared_address(&this_walk());
  consumer_sync();
  if (warp < n_rows) {  // read after the sums are complete, hence after a barrier
    const float inverse = inverse_rms(total(ctx.reduce[warp]), dim, s.eps);
    const float power = power_of_two(inverse);
    if (lane == 0) {
      ctx.factor[warp] = scales ? inverse / ctx.ahead[warp] : inverse;
      ctx.ahead[warp] = power > 0 && isfinite(power) ? power : 1.0f;  // for f16, should it come next
    }
  }
  return walk;
}

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

/// f32 values of the exchange (or of plain memory) into activations, eight to a thread.
template <int M>
static __device__ __noinline__ void stage_vector(uint32_t stage) {
  const DecodeStage& s = stage_at(stage);
  DecodeContext& ctx = decode_context();
  constexpr int kStep = kConsumers * 8;
  const int t = threadIdx.x, cols = s.cols, n_groups = (cols + 31) / 32;
  const int n_rows = ctx.n_rows, width = s.in_width;
  const bool exchanged = s.input != StageInput::plain, quantized = s.form == ActForm::int8;
  const float* in = s.in;
  if (exchanged) scout_attention(s, in + (n_rows - 1) * width, cols);
  for (int base = 0; base < cols; base += kStep) {
    const int i = base + t * 8;
    uint4 p[M] = {}, q[M] = {};
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (exchanged && i < cols && m < n_rows)  // whole sixteens
        p[m] = load_relaxed4(in + m * width + i), q[m] = load_relaxed4(in + m * width + i + 4);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= n_rows) break;
      const float* from = in + static_cast<int64_t>(m) * width + i;
      float4 a{}, b{};
      if (i < cols && exchanged) {
        poll_on(from, p[m], q[m]);
        a = as_floats(p[m]), b = as_floats(q[m]);
      } else if (i < cols) {
        a = load_plain(from, cols - i), b = load_plain(from + 4, cols - i - 4);
      }
      if (s.in_rotation > 1) hadamard_lanes(a, b, s.in_rotation);
      uint8_t* row = ctx.act_row(m);
      if (quantized) {
        put_int8(row, n_groups, i, a, b, i < cols);
      } else if (i < cols) {
        put_wide(s.form, row, i, a);
        if (i + 4 < cols) put_wide(s.form, row, i + 4, b);
      }
    }
  }
  if (!quantized) {  // up to the 16 bytes that the last load of a row may take
    const int size = s.form == ActForm::f32 ? 4 : 2, from = (cols + 3) / 4 * 4 * size,
              to = (cols * size + 15) / 16 * 16;
    for (int m = 0; m < ctx.n_rows; ++m)
      if (from + t < to) ctx.act_row(m)[from + t] = 0;
  }
  consumer_sync();
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
  scout_soon(s, false);
  for (int g = threadIdx.x; g < n_groups; g += kConsumers) {
    uint4 low[M] = {}, high[M] = {};
    uint2 both[M] = {};
    const auto load = [&](int m) {
      const uint8_t* from = codes + static_cast<int64_t>(m) * cols + g * 32;
      low[m] = load_relaxed4(from), high[m] = load_relaxed4(from + 16);
      both[m] = load_relaxed2(scales + static_cast<int64_t>(m) * s.in_width + 2 * g);
    };
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (m < ctx.n_rows) load(m);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (m >= ctx.n_rows) break;
      uint32_t n = 0;
      while (any_empty(low[m], kEmptyCodes) || any_empty(high[m], kEmptyCodes) || both[m].x == kEmpty ||
             both[m].y == kEmpty) {
        pause(n);
        load(m);
      }
      uint8_t* row = ctx.act_row(m);
      const float2 scale = make_float2(__uint_as_float(both[m].x), __uint_as_float(both[m].y));
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
  scout(in + (ctx.n_rows - 1) * s.in_width, s.cols / 2);
  for (int first = threadIdx.x; first < end; first += kAtOnce * kConsumers) {
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

/// Returns where this warp's walk lies. (stage_residual knows; others would return it through local memory.)
template <int M>
__device__ __forceinline__ uint32_t stage_input(const DecodeStage& s, uint32_t walk) {
  const uint32_t stage = shared_address(&s);
  if (s.output == StageOutput::residual && decode_context().single) fetch_own(stage);
  if (s.input == StageInput::residual) {
    walk = s.form == ActForm::int8 ? stage_residual<M, true>(stage) : stage_residual<M, false>(stage);
  } else if (has_units(s)) {
    if (s.input == StageInput::hidden && s.form == ActForm::int8) {
      stage_hidden_codes<M>(stage);
    } else if (s.input == StageInput::hidden && is_pair_form(s.form)) {
      stage_hidden_pairs<M>(stage);
    } else {
      stage_vector<M>(stage);
    }
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
