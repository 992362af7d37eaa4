// The bodies of pointwise.h's kernels, written once on Simd; included by pointwise_{scalar,avx2,avx512}.cpp only. Sums
// run in the same 32 lanes for every instruction set, and are then added in halves.
#pragma once

#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/pointwise.h"
#include "kernels/cpu/simd.h"

namespace infer::cpu {
namespace {

INFER_HD float square_root(float x) { return __builtin_sqrtf(x); }

/// Adds kLanes numbers from a to kLanes numbers from b, until one is left.
INFER_HD float sum_lanes(float* lanes, int n) {
  for (int half = n / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t n) {
  constexpr int kSums = 32, kVectors = kSums / kLanes;
  Vec sums[kVectors];
  for (Vec& s : sums) s = Simd::set(0.0f);
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec a = Simd::load(x + i + v * kLanes);
      sums[v] = Simd::fma(a, a, sums[v]);
    }
  }
  float lanes[kSums];
  for (int v = 0; v < kVectors; ++v) Simd::store(lanes + v * kLanes, sums[v]);
  for (; i < n; ++i) lanes[i % kSums] += x[i] * x[i];
  const float inverse = 1.0f / square_root(sum_lanes(lanes, kSums) / static_cast<float>(n) + eps);
  const Vec factor = Simd::set(inverse);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    Simd::store(out + i, Simd::mul(Simd::mul(Simd::load(x + i), factor), Simd::load(weight + i)));
  }
  for (; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

/// fn(Vec...) on vectors of n numbers; the rest goes through padded copies, so that every number takes the same path.
template <class Fn>
INFER_HD void for_vectors(const float* a, const float* b, float* out, int64_t n, Fn fn) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Simd::store(out + i, fn(Simd::load(a + i), Simd::load(b + i)));
  if (i == n) return;
  float pa[kLanes] = {}, pb[kLanes] = {};
  for (int64_t j = i; j < n; ++j) pa[j - i] = a[j];
  for (int64_t j = i; j < n; ++j) pb[j - i] = b[j];
  Simd::store(pa, fn(Simd::load(pa), Simd::load(pb)));
  for (int64_t j = i; j < n; ++j) out[j] = pa[j - i];
}

/// x / (1 + e^-x)
INFER_HD Vec silu(Vec x) { return Simd::div(x, Simd::add(Simd::set(1.0f), exp(Simd::sub(Simd::set(0.0f), x)))); }

/// x / (1 + e^-2u), which is x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) * (x + 0.044715 x^3)
INFER_HD Vec gelu_tanh(Vec x) {
  const Vec inner = Simd::fma(Simd::mul(Simd::mul(x, x), Simd::set(0.044715f)), x, x);
  const Vec exponent = Simd::mul(inner, Simd::set(-2 * 0.7978845608f));
  return Simd::div(x, Simd::add(Simd::set(1.0f), exp(exponent)));
}

/// What is no number stays so: min and max give their second operand then.
INFER_HD Vec silu_clamped(Vec gate, Vec up) {
  const Vec limit = Simd::set(kClampedLimit), one = Simd::set(1.0f);
  const Vec g = Simd::min(limit, gate), u = Simd::max(Simd::set(-kClampedLimit), Simd::min(limit, up));
  const Vec sigmoid = Simd::div(one, Simd::add(one, exp(Simd::mul(Simd::set(-kClampedSlope), g))));
  return Simd::mul(Simd::mul(g, sigmoid), Simd::add(u, one));
}

void activate(Activation activation, const float* gate, const float* up, float* out, int64_t n) {
  switch (activation) {
    case Activation::silu:
      return for_vectors(gate, up, out, n, [](Vec g, Vec u) { return Simd::mul(silu(g), u); });
    case Activation::gelu_tanh:
      return for_vectors(gate, up, out, n, [](Vec g, Vec u) { return Simd::mul(gelu_tanh(g), u); });
    case Activation::silu_clamped:
      return for_vectors(gate, up, out, n, silu_clamped);
  }
}

void add(float* x, const float* branch, float scale, int64_t n) {
  const Vec factor = Simd::set(scale);
  for_vectors(x, branch, x, n, [=](Vec a, Vec b) { return Simd::add(a, Simd::mul(factor, b)); });
}

void scale_softcap(float* x, float scale, float softcap, int64_t n) {
  const Vec factor = Simd::set(scale);
  if (softcap > 0) {
    for_vectors(x, x, x, n, [=](Vec a, Vec) { return capped(Simd::mul(a, factor), softcap); });
  } else {
    for_vectors(x, x, x, n, [=](Vec a, Vec) { return Simd::mul(a, factor); });
  }
}

INFER_HD void rotate_pair(float& a, float& b, float c, float s) {
  const float a0 = a, b0 = b;
  a = a0 * c - b0 * s;
  b = a0 * s + b0 * c;
}

void rotate(float* head, const float* cos_sin, int64_t pairs, bool adjacent) {
  if (adjacent) {
    for (int64_t i = 0; i < pairs; ++i) {
      rotate_pair(head[2 * i], head[2 * i + 1], cos_sin[2 * i], cos_sin[2 * i + 1]);
    }
    return;
  }
  float* __restrict a = head, * __restrict b = head + pairs;
  const float* __restrict table = cos_sin;
  for (int64_t i = 0; i < pairs; ++i) rotate_pair(a[i], b[i], table[2 * i], table[2 * i + 1]);
}

template <Format F>
INFER_HD void encode_as(const float* x, typename F::Block* dst, int64_t n) {
  int64_t i = 0;
  if constexpr (F::id == DType::F16) {
    for (; i + kLanes <= n; i += kLanes) Simd::store_f16(reinterpret_cast<uint16_t*>(dst + i), Simd::load(x + i));
  }
  if constexpr (PlainFormat<F>) {
    for (; i < n; ++i) dst[i] = F::encode(x[i]);
  } else if constexpr (EncodableFormat<F>) {
    for (; i < n; i += F::block) F::encode(x + i, dst[i / F::block]);
  }
}

void encode(DType dtype, const float* x, void* dst, int64_t n) {
  visit_in_list(KvFormats{}, dtype, [&]<class F>() { encode_as<F>(x, static_cast<typename F::Block*>(dst), n); });
}

constexpr PointwiseTable kPointwiseHere = {rms_norm, activate, add, scale_softcap, rotate, hadamard, encode};

}  // namespace
}  // namespace infer::cpu
