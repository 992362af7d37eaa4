// What surrounds the dot products of a stage: bringing the input into shared memory in the form the weights want
// (residual and norm recomputed by every CTA, since an activation vector costs less to read than a barrier), and
// finishing the sums of the CTA's tiles: bias, norm factor, activation, quantisation, and off to the other CTAs.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_dot.cuh"
#include "kernels/cuda/exchange.cuh"

namespace infer::cuda {

/// All consumer threads of the CTA.
__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 2, %0;" ::"n"(kConsumers) : "memory"); }

/// The CTA's view of a launch; one object in shared memory.
struct DecodeContext : DotContext {
  float* x;                           ///< [rows][dim], the residual stream: every CTA keeps its own
  float reduce[kMaxDecodeRows][kWarps];  ///< sums of squares
  float branch_reduce[kMaxDecodeRows][kWarps];
  int dim;
  uint32_t parity;                    ///< of layer 0 in this step
  bool single;                        ///< a launch of one stage: x comes from and goes to x_save
  float* x_save;
};

/// The sum over the warps of what each left in `of_warps`.
__device__ __forceinline__ float total(const float* of_warps) {
  const int lane = threadIdx.x % 32;
  return warp_sum(lane < kWarps ? of_warps[lane] : 0.0f);
}
__device__ __forceinline__ float inverse_rms(float sum_of_squares, int n, float eps) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

/// Quantises the 16 values of four neighbouring lanes (i: index of this lane's first) into an int8 activation row. A
/// group that holds a NaN or an infinity becomes NaN.
__device__ __forceinline__ void put_int8(uint8_t* row, int cols, int i, float4 v, bool valid) {
  float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  const bool bad = !isfinite(v.x + v.y + v.z + v.w) && !(isfinite(v.x) && isfinite(v.y) && isfinite(v.z) && isfinite(v.w));
  if (bad) largest = __uint_as_float(0x7f800000u);
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
  const float inverse = largest > 1e-30f && largest < 1e38f ? 127.0f / largest : 0.0f;
  const int a = __float2int_rn(v.x * inverse), b = __float2int_rn(v.y * inverse), c = __float2int_rn(v.z * inverse),
            d = __float2int_rn(v.w * inverse);
  int sum = a + b + c + d;
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  if (!valid) return;
  const int n_groups = (cols + 31) / 32, group = i / 32, half = i / 16 % 2, word = i / 4 % 4;
  reinterpret_cast<uint32_t*>(row)[(half * n_groups + group) * 4 + word] =
      (a & 255) | (b & 255) << 8 | (c & 255) << 16 | static_cast<uint32_t>(d) << 24;
  if (word == 0) {
    float scale = largest / 127.0f;
    if (!(largest < 1e38f)) scale = __uint_as_float(0x7fc00000u);
    if (largest <= 1e-30f) scale = 0;
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

/// One warp waits for the end of the vector, so that 512 threads do not poll while others still compute.
__device__ __forceinline__ void scout(const float* row, int width) {
  if (threadIdx.x < 32) {
    const int i = width - 4 * (static_cast<int>(threadIdx.x) + 1);
    if (i >= 0) poll4(row + i);
  }
  consumer_sync();
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

static __device__ __noinline__ void load_embedding(const DecodeStage& s, DecodeContext& ctx) {
  for (int m = 0; m < ctx.n_rows; ++m) decode_embedding_row(s.embedding, m, ctx.x + m * ctx.dim, ctx.dim);
  consumer_sync();
}

/// x += scale * branch, or + scale * norm(branch), then the norm into the activations. The factor 1 / rms of the norm
/// of int8 activations is left to the epilogue (see row_factor).
static __device__ __noinline__ void stage_residual(const DecodeStage& s, DecodeContext& ctx) {
  const int t = threadIdx.x, warp = t / 32, lane = t % 32, dim = ctx.dim;
  consumer_sync();
  if (s.residual_index == 0) {
    load_embedding(s, ctx);
  } else if (ctx.single) {
    const float* from = ctx.x_save + static_cast<int64_t>(s.residual_index % 2) * ctx.n_rows * dim;
    for (int i = t; i < ctx.n_rows * dim; i += kConsumers) ctx.x[i] = from[i];
    consumer_sync();
  }
  const uint32_t copy = (ctx.parity + s.in_layer) & 1;
  const float* branch = s.in ? s.in + static_cast<int64_t>(copy) * ctx.n_rows * s.in_width : nullptr;
  if (branch) scout(branch + (ctx.n_rows - 1) * s.in_width, dim);
  if (branch && s.post_norm) {
    for (int m = 0; m < ctx.n_rows; ++m) {
      float squares = 0;
      for (int i = t * 4; i < dim; i += kConsumers * 4) {
        const float4 b = poll4(branch + m * s.in_width + i);
        squares += b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
      }
      squares = warp_sum(squares);
      if (lane == 0) ctx.branch_reduce[m][warp] = squares;
    }
    consumer_sync();
  }
  for (int m = 0; m < ctx.n_rows; ++m) {
    float squares = 0;
    float* x = ctx.x + m * dim;
    uint8_t* row = const_cast<uint8_t*>(ctx.act) + m * ctx.act_row_bytes;
    const float factor =
        branch && s.post_norm ? inverse_rms(total(ctx.branch_reduce[m]), dim, s.post_eps) * s.residual_scale
                              : s.residual_scale;
    for (int base = 0; base < dim; base += kConsumers * 4) {
      const int i = base + t * 4;
      const bool valid = i < dim;
      float4 v{};
      if (valid) {
        const float4 w = *reinterpret_cast<const float4*>(s.norm + i);
        v = *reinterpret_cast<const float4*>(x + i);
        if (branch) {
          float4 b = poll4(branch + m * s.in_width + i);
          if (s.post_norm) {
            const float4 p = *reinterpret_cast<const float4*>(s.post_norm + i);
            b.x *= p.x, b.y *= p.y, b.z *= p.z, b.w *= p.w;
          }
          v.x += factor * b.x, v.y += factor * b.y, v.z += factor * b.z, v.w += factor * b.w;
          *reinterpret_cast<float4*>(x + i) = v;
        }
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        v.x *= w.x, v.y *= w.y, v.z *= w.z, v.w *= w.w;
      }
      if (s.form == ActForm::int8) put_int8(row, dim, i, v, valid);
    }
    squares = warp_sum(squares);
    if (lane == 0) ctx.reduce[m][warp] = squares;
  }
  consumer_sync();
  if (s.form != ActForm::int8) {
    for (int m = 0; m < ctx.n_rows; ++m) {
      const float inverse = inverse_rms(total(ctx.reduce[m]), dim, s.eps);
      uint8_t* row = const_cast<uint8_t*>(ctx.act) + m * ctx.act_row_bytes;
      for (int i = t * 4; i < dim; i += kConsumers * 4) {
        const float4 w = *reinterpret_cast<const float4*>(s.norm + i);
        const float4 v = *reinterpret_cast<const float4*>(ctx.x + m * dim + i);
        put_wide(s.form, row, i,
                 {v.x * inverse * w.x, v.y * inverse * w.y, v.z * inverse * w.z, v.w * inverse * w.w});
      }
    }
    consumer_sync();
  }
  if (ctx.single && blockIdx.x == 0) {
    float* to = ctx.x_save + static_cast<int64_t>((s.residual_index + 1) % 2) * ctx.n_rows * dim;
    for (int i = t; i < ctx.n_rows * dim; i += kConsumers) to[i] = ctx.x[i];
  }
}

/// f32 values of the exchange (or of plain memory) into activations.
static __device__ __noinline__ void stage_vector(const DecodeStage& s, DecodeContext& ctx) {
  const int t = threadIdx.x, cols = s.cols;
  const bool exchanged = s.input != StageInput::plain;
  const uint32_t copy = exchanged ? (ctx.parity + s.in_layer) & 1 : 0;
  const float* in = s.in + static_cast<int64_t>(copy) * ctx.n_rows * s.in_width;
  consumer_sync();
  if (exchanged) scout(in + (ctx.n_rows - 1) * s.in_width, cols);
  for (int m = 0; m < ctx.n_rows; ++m) {
    uint8_t* row = const_cast<uint8_t*>(ctx.act) + m * ctx.act_row_bytes;
    for (int base = 0; base < cols; base += kConsumers * 4) {
      const int i = base + t * 4;
      const bool valid = i < cols;
      float4 v{};
      if (valid) {
        const float* p = in + static_cast<int64_t>(m) * s.in_width + i;
        if (exchanged) {
          v = poll4(p);
        } else if (i + 4 <= cols && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
          v = *reinterpret_cast<const float4*>(p);
        } else {
          v.x = p[0], v.y = i + 1 < cols ? p[1] : 0, v.z = i + 2 < cols ? p[2] : 0, v.w = i + 3 < cols ? p[3] : 0;
        }
      }
      if (s.form == ActForm::int8) {
        put_int8(row, cols, i, v, valid);
      } else if (valid) {
        put_wide(s.form, row, i, v);
      }
    }
  }
  if (s.form != ActForm::int8) {  // up to the 16 bytes that the last load of a row may take
    const int size = s.form == ActForm::f32 ? 4 : 2, from = (cols + 3) / 4 * 4 * size, to = (cols * size + 15) / 16 * 16;
    for (int m = 0; m < ctx.n_rows; ++m)
      if (from + t < to) const_cast<uint8_t*>(ctx.act)[m * ctx.act_row_bytes + from + t] = 0;
  }
  consumer_sync();
}

/// Groups of 16 that gate and up have quantised already.
static __device__ __noinline__ void stage_hidden_codes(const DecodeStage& s, DecodeContext& ctx) {
  const int cols = s.cols, n16 = cols / 16, n_groups = (cols + 31) / 32;
  const uint32_t copy = (ctx.parity + s.in_layer) & 1;
  const uint8_t* codes = s.in_codes + static_cast<int64_t>(copy) * ctx.n_rows * cols;
  const float* scales = s.in + static_cast<int64_t>(copy) * ctx.n_rows * s.in_width;
  consumer_sync();
  scout(scales + (ctx.n_rows - 1) * s.in_width, n16);
  for (int m = 0; m < ctx.n_rows; ++m) {
    uint8_t* row = const_cast<uint8_t*>(ctx.act) + m * ctx.act_row_bytes;
    for (int i = threadIdx.x; i < n16; i += kConsumers) {
      const uint4 c = poll_codes(codes + static_cast<int64_t>(m) * cols + i * 16);
      const float scale = poll1(scales + m * s.in_width + i);
      constexpr int kOnes = 0x01010101;
      int sum = __dp4a(static_cast<int>(c.x), kOnes, 0);
      sum = __dp4a(static_cast<int>(c.y), kOnes, sum);
      sum = __dp4a(static_cast<int>(c.z), kOnes, sum);
      sum = __dp4a(static_cast<int>(c.w), kOnes, sum);
      const int half = i % 2, group = i / 2;
      reinterpret_cast<uint4*>(row)[half * n_groups + group] = c;
      reinterpret_cast<float*>(row + n_groups * 32)[i] = scale;
      reinterpret_cast<float*>(row + n_groups * 40)[i] = scale * static_cast<float>(sum);
    }
  }
  consumer_sync();
}

__device__ __forceinline__ void stage_input(const DecodeStage& s, DecodeContext& ctx, bool has_units) {
  if (s.input == StageInput::residual) {
    stage_residual(s, ctx);
  } else if (has_units) {
    if (s.input == StageInput::hidden && s.form == ActForm::int8) {
      stage_hidden_codes(s, ctx);
    } else {
      stage_vector(s, ctx);
    }
  }
  if (s.form == ActForm::int8 && s.cols % 32 != 0) {
    for (int m = 0; m < ctx.n_rows; ++m)
      pad_row(s.form, const_cast<uint8_t*>(ctx.act) + m * ctx.act_row_bytes, s.cols);
    consumer_sync();
  }
}

// ---- epilogue ---------------------------------------------------------------------------------------------------

/// What the norm left to do: 1 / rms for int8 activations of a residual input, else 1.
__device__ __forceinline__ float row_factor(const DecodeStage& s, const DecodeContext& ctx, int m) {
  if (s.input != StageInput::residual || s.form != ActForm::int8) return 1.0f;
  float squares = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) squares += ctx.reduce[m][w];
  return inverse_rms(squares, ctx.dim, s.eps);
}

template <int M>
__device__ __forceinline__ float slot_sum(const DecodeContext& ctx, int slot, int m, int row) {
  return ctx.partial[(slot * 2 * M + m) * 16 + row] + ctx.partial[((slot * 2 + 1) * M + m) * 16 + row];
}

__device__ __forceinline__ float activated(float gate, float up, bool gelu) {
  if (gelu) return 0.5f * gate * (1.0f + tanhf(0.7978845608028654f * (gate + 0.044715f * gate * gate * gate))) * up;
  return gate / (1.0f + __expf(-gate)) * up;
}

/// Sixteen neighbouring lanes hold the sixteen values of a unit: quantises and publishes them.
__device__ __forceinline__ void put_hidden_codes(const DecodeStage& s, const DecodeContext& ctx, int m, int unit,
                                                 int row, float v, bool valid) {
  const uint32_t copy = (ctx.parity + s.out_layer) & 1;
  float largest = isfinite(v) ? fabsf(v) : __uint_as_float(0x7f800000u);
#pragma unroll
  for (int step = 8; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  const float inverse = largest > 1e-30f && largest < 1e38f ? 127.0f / largest : 0.0f;
  uint32_t code = static_cast<uint32_t>(__float2int_rn((isfinite(v) ? v : 0.0f) * inverse)) & 255;
  code |= __shfl_down_sync(~0u, code, 1) << 8;   // of lanes 4k: codes k, k + 1
  code |= __shfl_down_sync(~0u, code, 2) << 16;  // and k + 2, k + 3
  if (!valid) return;
  const int64_t cols = static_cast<int64_t>(s.w[0].rows);
  const int64_t now = (static_cast<int64_t>(copy) * ctx.n_rows + m), other = static_cast<int64_t>(copy ^ 1) * ctx.n_rows + m;
  if (row % 4 == 0)
    put_codes(s.out_codes + now * cols + unit * 16 + row, s.out_codes + other * cols + unit * 16 + row, code);
  if (row == 0) {
    float scale = largest > 1e-30f ? largest / 127.0f : 0.0f;
    if (!(largest < 1e38f)) scale = __uint_as_float(0x7fc00000u);
    put(s.out + now * s.out_width + unit, s.out + other * s.out_width + unit, scale);
  }
}

/// Finishes `n` units whose sums lie in the slots: unit i is first_unit + i * gridDim.x.
template <int M>
__device__ __noinline__ void finish_units(const DecodeStage& s, DecodeContext& ctx, int first_unit, int n) {
  const int t = threadIdx.x;
  for (int base = 0; base < n * 16 * M; base += kConsumers) {
    const int i = base + t, row = i % 16, m = i / 16 % M, u = i / (16 * M);
    const bool valid = u < n && m < ctx.n_rows;
    const int unit = first_unit + u * static_cast<int>(gridDim.x);
    if (s.output == StageOutput::hidden) {
      float v = 0;
      const int out_row = unit * 16 + row;
      const bool real = valid && out_row < s.w[0].rows;
      if (real) {
        const float factor = row_factor(s, ctx, m);
        float gate = slot_sum<M>(ctx, 2 * u, m, row) * factor, up = slot_sum<M>(ctx, 2 * u + 1, m, row) * factor;
        if (s.w[0].bias) gate += s.w[0].bias[out_row];
        if (s.w[1].bias) up += s.w[1].bias[out_row];
        v = activated(gate, up, s.gelu != 0);
      }
      if (s.hidden_form == ActForm::int8) {
        put_hidden_codes(s, ctx, m, unit, row, v, real);
      } else if (real) {
        const uint32_t copy = (ctx.parity + s.out_layer) & 1;
        const int64_t now = static_cast<int64_t>(copy) * ctx.n_rows + m, other = static_cast<int64_t>(copy ^ 1) * ctx.n_rows + m;
        put(s.out + now * s.out_width + out_row, s.out + other * s.out_width + out_row, v);
      }
      continue;
    }
    if (!valid) continue;
    int tile = unit, matrix = 0;
    for (; tile >= s.w[matrix].n_tiles; ++matrix) tile -= s.w[matrix].n_tiles;
    const MatrixArg& w = s.w[matrix];
    const int r = tile * 16 + row;
    if (r >= w.rows) continue;
    float v = slot_sum<M>(ctx, u, m, row) * row_factor(s, ctx, m);
    if (w.bias) v += w.bias[r];
    const int at = w.out_offset + r;
    if (s.output == StageOutput::vector) {
      const uint32_t copy = (ctx.parity + s.out_layer) & 1;
      const int64_t now = static_cast<int64_t>(copy) * ctx.n_rows + m, other = static_cast<int64_t>(copy ^ 1) * ctx.n_rows + m;
      put(s.out + now * s.out_width + at, s.out + other * s.out_width + at, v);
    } else {
      float* to = s.out + static_cast<int64_t>(m) * s.out_width + at;
      if (s.output == StageOutput::logits) {
        v *= s.logit_scale;
        if (s.softcap > 0) v = s.softcap * tanhf(v / s.softcap);
      } else if (s.accumulate) {
        v += *to;
      }
      *to = v;
    }
  }
}

}  // namespace infer::cuda
