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
  const uint32_t copy = (decode_context.parity + s.out_layer) & 1;
  put(s.soon + copy * s.n_soon + part, s.soon + (copy ^ 1) * s.n_soon + part, 1);
}

/// The same where results are announced: until all are near, which `known` says without a look. Then all threads ask
/// for them, and no trip to the L2 lies between the results and those who want them.
__device__ __forceinline__ void scout_soon(const DecodeStage& s, uint32_t copy, bool known) {
  const float* soon = s.soon + copy * s.n_soon;
  for (int i = helper_thread(); i < s.n_soon && !known; i += kConsumers) {
    uint32_t word = load_relaxed(soon + i);
    poll_on(soon + i, word);
  }
  consumer_sync();
}

/// Before results of attention. Where parts of it are split, all CTAs are done at about the same time.
__device__ __forceinline__ void scout_attention(const DecodeStage& s, uint32_t copy, const float* row, int width) {
  if (s.n_soon == 0 || decode_context.single || this_walk().meets) return scout(row, width);
  scout_soon(s, copy, this_walk().attended);
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

static __device__ __noinline__ void load_embedding() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  for (int m = 0; m < ctx.n_rows; ++m) decode_embedding_row(s.embedding, m, ctx.x(m), ctx.dim);
  consumer_sync();
}

/// Sums of squares of the branch, whose norm comes before it is added.
static __device__ __noinline__ void reduce_branch(const float* branch, int width) {
  DecodeContext& ctx = decode_context;
  for (int m = 0; m < ctx.n_rows; ++m) {
    float squares = 0;
    for (int i = threadIdx.x * 4; i < ctx.dim; i += kConsumers * 4) {
      const float4 b = poll4(branch + m * width + i);
      squares += b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) ctx.branch_reduce[m][this_warp()] = squares;
  }
  consumer_sync();
}

/// The norm of x into 16- or 32-bit activations, once the sums of squares are there.
static __device__ __noinline__ void normalize_wide() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  for (int m = 0; m < ctx.n_rows; ++m) {
    const float inverse = inverse_rms(total(ctx.reduce[m]), ctx.dim, s.eps);
    for (int i = threadIdx.x * 4; i < ctx.dim; i += kConsumers * 4) {
      const float4 w = *reinterpret_cast<const float4*>(s.norm + i);
      const float4 v = *reinterpret_cast<const float4*>(ctx.x(m) + i);
      put_wide(s.form, ctx.act_row(m), i,
               {v.x * inverse * w.x, v.y * inverse * w.y, v.z * inverse * w.z, v.w * inverse * w.w});
    }
  }
  consumer_sync();
}

/// Whether the factor 1 / rms of a norm is left to the epilogue, which saves a pass over the row. f16 does not reach as
/// far as x may: there the power of two of the last norm's factor goes ahead, where there was one.
__device__ __forceinline__ bool leaves_factor(const DecodeStage& s, const DecodeContext& ctx) {
  return s.form == ActForm::int8 || s.form == ActForm::bf16 ||
         (s.form == ActForm::f16 && s.residual_index > 0 && !ctx.single);
}
__device__ __forceinline__ float power_of_two(float x) { return __uint_as_float(__float_as_uint(x) & 0x7f800000u); }

/// Four floats that no kernel writes while this one runs.
__device__ __forceinline__ float4 load_constant4(const float* p) {
  float4 v;
  asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
  return v;
}

/// x += scale * branch, or + scale * norm(branch), then the norm into the activations. A thread takes eight values at a
/// time, all loads side by side: with 512 threads that is one trip to the L2 for a width of 4096. A load into registers
/// for which another one is under way waits for that, even where it is predicated off, so each has its own place.
template <int M, bool kInt8>
static __device__ __noinline__ void stage_residual() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  constexpr int kStep = kConsumers * 8;
  // A row's first values are asked for while the row before is at hand. Quantising a row leaves no time for that to
  // pay.
  constexpr bool kAsks = M > 1 && !kInt8;
  const int t = threadIdx.x, warp = t / 32, lane = t % 32, dim = ctx.dim, n_rows = ctx.n_rows, width = s.in_width;
  const int n_groups = (dim + 31) / 32;
  const float *norm = s.norm, *post_norm = s.post_norm;
  const bool leaves = kInt8 || leaves_factor(s, ctx);
  if (s.residual_index == 0) {
    load_embedding();
  } else if (ctx.single) {
    const float* from = ctx.x_save + static_cast<int64_t>(s.residual_index % 2) * n_rows * dim;
    for (int i = t; i < n_rows * dim; i += kConsumers) ctx.x(0)[i] = from[i];
    consumer_sync();
  }
  const uint32_t copy = (ctx.parity + s.in_layer) & 1;
  const float* branch = s.in ? s.in + static_cast<int64_t>(copy) * n_rows * width : nullptr;
  if (branch && post_norm) reduce_branch(branch, width);
  uint4 next[2] = {};
  const auto ask = [&](int m) {
    const float* from = branch + m * width + t * 8;
    if (m < n_rows && branch && t * 8 < dim) next[0] = load_relaxed4(from), next[1] = load_relaxed4(from + 4);
  };
  ask(0);
  float4 w0{}, w1{};  // of the norm
  const auto load_norm = [&](int i) {
    if (i < dim) w0 = load_constant4(norm + i), w1 = load_constant4(norm + i + 4);
  };
  load_norm(t * 8);
  for (int m = 0; m < n_rows; ++m) {
    const float ahead = !kInt8 && s.form == ActForm::f16 && leaves ? ctx.ahead[m] : 1.0f;
    float squares = 0, factor = s.residual_scale;
    if (branch && post_norm) factor *= inverse_rms(total(ctx.branch_reduce[m]), dim, s.post_eps);
    for (int base = 0; base < dim; base += kStep) {
      const int i = base + t * 8;
      const bool valid = i < dim;
      float4 a{}, b{};
      if (valid) {
        const float* from = branch + m * width + i;
        float4* x = reinterpret_cast<float4*>(ctx.x(m) + i);
        a = x[0], b = x[1];
        if (branch) {
          if (base > 0 || (m > 0 && !kAsks)) next[0] = load_relaxed4(from), next[1] = load_relaxed4(from + 4);
          uint4 p = next[0], q = next[1];
          if (kAsks && base == 0) ask(m + 1);
          poll_on(from, p, q);
          float4 c = as_floats(p), d = as_floats(q);
          if (post_norm) {
            const float4 u = *reinterpret_cast<const float4*>(post_norm + i),
                         v = *reinterpret_cast<const float4*>(post_norm + i + 4);
            c.x *= u.x, c.y *= u.y, c.z *= u.z, c.w *= u.w, d.x *= v.x, d.y *= v.y, d.z *= v.z, d.w *= v.w;
          }
          a.x += factor * c.x, a.y += factor * c.y, a.z += factor * c.z, a.w += factor * c.w;
          b.x += factor * d.x, b.y += factor * d.y, b.z += factor * d.z, b.w += factor * d.w;
          x[0] = a, x[1] = b;
        }
        squares += a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w + b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
        a.x *= w0.x, a.y *= w0.y, a.z *= w0.z, a.w *= w0.w, b.x *= w1.x, b.y *= w1.y, b.z *= w1.z, b.w *= w1.w;
      }
      if constexpr (kInt8) {
        put_int8(ctx.act_row(m), n_groups, i, a, b, valid);
      } else if (leaves && valid) {
        put_wide(s.form, ctx.act_row(m), i, {a.x * ahead, a.y * ahead, a.z * ahead, a.w * ahead});
        put_wide(s.form, ctx.act_row(m), i + 4, {b.x * ahead, b.y * ahead, b.z * ahead, b.w * ahead});
      }
      if (dim > kStep) load_norm(base + kStep < dim ? i + kStep : t * 8);
    }
    squares = warp_sum(squares);
    if (lane == 0) ctx.reduce[m][warp] = squares;
  }
  consumer_sync();
  if (!kInt8 && !leaves) normalize_wide();
  if (warp < n_rows) {  // read after the sums are complete, hence after a barrier
    const float inverse = inverse_rms(total(ctx.reduce[warp]), dim, s.eps);
    const float power = power_of_two(inverse);
    if (lane == 0) {
      if (s.form == ActForm::f16) {
        ctx.factor[warp] = leaves ? inverse / ctx.ahead[warp] : 1.0f;
      } else {
        ctx.factor[warp] = leaves ? inverse : 1.0f;
      }
      ctx.ahead[warp] = power > 0 && isfinite(power) ? power : 1.0f;  // for f16, should it come next
    }
  }
  if (ctx.single && blockIdx.x == 0) {
    float* to = ctx.x_save + static_cast<int64_t>((s.residual_index + 1) % 2) * n_rows * dim;
    for (int i = t; i < n_rows * dim; i += kConsumers) to[i] = ctx.x(0)[i];
  }
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
static __device__ __noinline__ void stage_vector() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  constexpr int kStep = kConsumers * 8;
  const int t = threadIdx.x, cols = s.cols, n_groups = (cols + 31) / 32;
  const bool exchanged = s.input != StageInput::plain, quantized = s.form == ActForm::int8;
  const uint32_t copy = exchanged ? (ctx.parity + s.in_layer) & 1 : 0;
  const float* in = s.in + static_cast<int64_t>(copy) * ctx.n_rows * s.in_width;
  if (exchanged) scout_attention(s, copy, in + (ctx.n_rows - 1) * s.in_width, cols);
  const bool asks = M > 1 && !quantized;  // as in stage_residual
  uint4 next[2] = {};
  const auto ask = [&](int m) {
    const float* from = in + static_cast<int64_t>(m) * s.in_width + t * 8;
    if (m < ctx.n_rows && exchanged && t * 8 < cols) next[0] = load_relaxed4(from), next[1] = load_relaxed4(from + 4);
  };
  if (asks) ask(0);
  for (int m = 0; m < ctx.n_rows; ++m) {
    uint8_t* row = ctx.act_row(m);
    for (int base = 0; base < cols; base += kStep) {
      const int i = base + t * 8;
      const float* from = in + static_cast<int64_t>(m) * s.in_width + i;
      float4 a{}, b{};
      if (i < cols && exchanged) {  // whole sixteens
        uint4 p = next[0], q = next[1];
        if (!asks || base > 0) p = load_relaxed4(from), q = load_relaxed4(from + 4);
        if (asks && base == 0) ask(m + 1);
        poll_on(from, p, q);
        a = as_floats(p), b = as_floats(q);
      } else if (i < cols) {
        a = load_plain(from, cols - i), b = load_plain(from + 4, cols - i - 4);
      }
      if (s.in_rotation > 1) hadamard_lanes(a, b, s.in_rotation);
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

/// Groups of 16 that gate and up have quantised already, two to a thread.
static __device__ __noinline__ void stage_hidden_codes() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  constexpr int kOnes = 0x01010101;
  const int cols = s.cols, n_groups = cols / 32;
  const uint32_t copy = (ctx.parity + s.in_layer) & 1;
  const uint8_t* codes = s.in_codes + static_cast<int64_t>(copy) * ctx.n_rows * cols;
  const float* scales = s.in + static_cast<int64_t>(copy) * ctx.n_rows * s.in_width;
  scout_soon(s, copy, false);
  for (int m = 0; m < ctx.n_rows; ++m, codes += cols, scales += s.in_width) {
    uint8_t* row = ctx.act_row(m);
    for (int g = threadIdx.x; g < n_groups; g += kConsumers) {
      uint4 low, high;
      uint2 both;
      uint32_t n = 0;
      while (true) {
        low = load_relaxed4(codes + g * 32), high = load_relaxed4(codes + g * 32 + 16);
        both = load_relaxed2(scales + 2 * g);
        if (!any_empty(low, kEmptyCodes) && !any_empty(high, kEmptyCodes) && both.x != kEmpty && both.y != kEmpty)
          break;
        pause(n);
      }
      const auto sum = [&](uint4 c) {
        const int half = __dp4a(static_cast<int>(c.x), kOnes, __dp4a(static_cast<int>(c.y), kOnes, 0));
        return static_cast<float>(__dp4a(static_cast<int>(c.z), kOnes, __dp4a(static_cast<int>(c.w), kOnes, half)));
      };
      const float2 scale = make_float2(__uint_as_float(both.x), __uint_as_float(both.y));
      reinterpret_cast<uint4*>(row)[g] = low;
      reinterpret_cast<uint4*>(row)[n_groups + g] = high;
      reinterpret_cast<float2*>(row + n_groups * 32)[g] = scale;
      reinterpret_cast<float2*>(row + n_groups * 40)[g] = make_float2(scale.x * sum(low), scale.y * sum(high));
    }
  }
  consumer_sync();
}

/// Hidden values that gate and up have rounded already, eight to a load and four loads side by side.
static __device__ __noinline__ void stage_hidden_pairs() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  constexpr int kAtOnce = 4;
  const int n = s.cols / 8;
  const uint32_t copy = (ctx.parity + s.in_layer) & 1;
  const float* in = s.in + static_cast<int64_t>(copy) * ctx.n_rows * s.in_width;
  scout(in + (ctx.n_rows - 1) * s.in_width, s.cols / 2);
  for (int m = 0; m < ctx.n_rows; ++m, in += s.in_width) {
    uint8_t* row = ctx.act_row(m);
    for (int i = threadIdx.x; i < n; i += kAtOnce * kConsumers) {
      uint4 v[kAtOnce] = {};
      uint32_t tries = 0;
      while (true) {
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k)
          if (i + k * kConsumers < n) v[k] = load_relaxed4(in + (i + k * kConsumers) * 4);
        bool empty = false;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k)
          empty = empty || any_empty(v[k]);
        if (!empty) break;
        pause(tries);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (i + k * kConsumers < n) reinterpret_cast<uint4*>(row)[i + k * kConsumers] = v[k];
    }
  }
  consumer_sync();
}

/// Whether hidden values of this form pass as pairs of 16 bits.
__device__ __forceinline__ bool is_pair_form(ActForm form) { return form == ActForm::f16 || form == ActForm::bf16; }

template <int M>
__device__ __forceinline__ void stage_input(bool has_units) {
  const DecodeStage& s = current_stage();
  if (s.input == StageInput::residual) {
    s.form == ActForm::int8 ? stage_residual<M, true>() : stage_residual<M, false>();
  } else if (has_units) {
    if (s.input == StageInput::hidden && s.form == ActForm::int8) {
      stage_hidden_codes();
    } else if (s.input == StageInput::hidden && is_pair_form(s.form)) {
      stage_hidden_pairs();
    } else {
      stage_vector<M>();
    }
  }
  if (s.form == ActForm::int8 && s.cols % 32 != 0) {
    for (int m = 0; m < decode_context.n_rows; ++m) pad_row(s.form, decode_context.act_row(m), s.cols);
    consumer_sync();
  }
}

}  // namespace infer::cuda
