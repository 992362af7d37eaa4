// Primitives of models with experts: choice, the products of each token with its own experts, and their weighted sum.
#include <cmath>
#include <vector>

#include "kernels/ref/ref.h"
#include "kernels/route.h"
#include "quant/formats.h"

namespace infer::ref {

void route(const RouteArgs& a) {
  const int64_t n_tokens = a.logits.rows(), n_experts = a.logits.cols(), n_active = a.ids.cols();
  require(n_active >= 1 && n_active <= n_experts && n_experts <= kMaxExperts, "route", "counts of experts");
  require(a.ids.rows() == n_tokens && a.weights.rows() == n_tokens && a.weights.cols() == n_active, "route",
          "shapes differ");
  for (int64_t t = 0; t < n_tokens; ++t) {
    route_token(a.logits.as<float>() + t * n_experts, n_experts, n_active, a.sum_to_one, a.scale,
                a.ids.as<int32_t>() + t * n_active, a.weights.as<float>() + t * n_active);
  }
}

void expert_matmul(const ExpertMatmulArgs& a) {
  require(a.w.layout == 0 && a.w.n_dims == 3, "expert_matmul", "weight is no plain stack of matrices");
  const int64_t n_experts = a.w.dims[0], n = a.w.dims[1], k = a.w.dims[2], row = row_bytes(a.w.dtype, k);
  const int64_t n_active = a.ids.cols(), count = a.ids.n_elements();
  require(gpu_decodable(a.w.dtype) && row >= 0, "expert_matmul", "no such format, or rows that split a block");
  const bool own_rows = a.x.n_dims == 3;
  require(a.x.cols() == k && a.x.n_elements() == (own_rows ? count : a.ids.rows()) * k, "expert_matmul",
          "shapes differ");
  require(a.out.n_elements() == count * n, "expert_matmul", "result of another shape");
  require(!a.bias || a.bias.n_elements() == n_experts * n, "expert_matmul", "bias of another length");
  const int32_t* ids = a.ids.as<int32_t>();
  for (int64_t i = 0; i < count; ++i) require(ids[i] >= 0 && ids[i] < n_experts, "expert_matmul", "id out of range");
  std::vector<float> w(static_cast<size_t>(k));
  for (int64_t expert = 0; expert < n_experts; ++expert) {
    std::vector<int64_t> uses;
    for (int64_t i = 0; i < count; ++i)
      if (ids[i] == expert) uses.push_back(i);
    for (int64_t r = 0; r < n && !uses.empty(); ++r) {
      decode_row(a.w.dtype, a.w.as<char>() + (expert * n + r) * row, w.data(), k);
      const double bias = a.bias ? a.bias.as<float>()[expert * n + r] : 0;
      for (const int64_t i : uses) {
        const float* x = a.x.as<float>() + (own_rows ? i : i / n_active) * k;
        double sum = 0;
        for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(x[j]) * w[static_cast<size_t>(j)];
        a.out.as<float>()[i * n + r] = static_cast<float>(sum + bias);
      }
    }
  }
}

void combine(const CombineArgs& a) {
  const int64_t n_tokens = a.weights.rows(), n_active = a.weights.cols(), dim = a.out.cols();
  require(a.experts.n_elements() == n_tokens * n_active * dim && a.out.rows() == n_tokens, "combine", "shapes differ");
  require(!a.shared || a.shared.n_elements() == n_tokens * dim, "combine", "shared expert of another shape");
  require(!a.shared_mix || (a.shared_mix.n_elements() == dim && a.x.n_elements() == n_tokens * dim), "combine",
          "mix of another shape");
  for (int64_t t = 0; t < n_tokens; ++t) {
    double dot = 0, share = 1;
    for (int64_t i = 0; i < dim && a.shared_mix; ++i)
      dot += static_cast<double>(a.x.as<float>()[t * dim + i]) * a.shared_mix.as<float>()[i];
    if (a.shared_mix) share = 1 / (1 + std::exp(-dot));
    for (int64_t i = 0; i < dim; ++i) {
      double sum = 0;
      for (int64_t s = t * n_active; s < (t + 1) * n_active; ++s)
        sum += static_cast<double>(a.weights.as<float>()[s]) * a.experts.as<float>()[s * dim + i];
      if (a.shared) sum += share * a.shared.as<float>()[t * dim + i];
      a.out.as<float>()[t * dim + i] = static_cast<float>(sum);
    }
  }
}

}  // namespace infer::ref
