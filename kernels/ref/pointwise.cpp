// Primitives that touch each number once: norm, activation, residual, gather, logit scale.
#include <cmath>
#include <cstring>

#include "kernels/ref/ref.h"

namespace infer::ref {

void norm_row(const float* x, const float* weight, float eps, float* out, int64_t n) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double inverse = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * inverse * weight[i]);
}

void norm(const NormArgs& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  require(args.weight.n_elements() == cols && args.out.n_elements() == args.x.n_elements(), "norm", "shapes differ");
  for (int64_t r = 0; r < rows; ++r) {
    norm_row(args.x.as<float>() + r * cols, args.weight.as<float>(), args.eps, args.out.as<float>() + r * cols, cols);
  }
}

namespace {

double activated(Activation activation, double gate, double up) {
  const double root = std::sqrt(2 / 3.14159265358979323846), limit = kClampedLimit;
  switch (activation) {
    case Activation::silu:
      return gate / (1 + std::exp(-gate)) * up;
    case Activation::gelu_tanh:
      return 0.5 * gate * (1 + std::tanh(root * (gate + 0.044715 * gate * gate * gate))) * up;
    case Activation::silu_clamped:
      if (gate > limit) gate = limit;
      if (up > limit) up = limit;
      if (up < -limit) up = -limit;
      return gate / (1 + std::exp(-kClampedSlope * gate)) * (up + 1);
  }
  return NAN;
}

}  // namespace

void activate(const ActivateArgs& args) {
  const int64_t n = args.gate.n_elements();
  require(args.up.n_elements() == n && args.out.n_elements() == n, "activate", "shapes differ");
  const float *gate = args.gate.as<float>(), *up = args.up.as<float>();
  float* out = args.out.as<float>();
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(activated(args.activation, gate[i], up[i]));
}

void add(const AddArgs& args) {
  require(args.branch.n_elements() == args.x.n_elements(), "add", "shapes differ");
  if (args.norm) norm({args.branch, args.norm, args.eps, args.branch});
  float* x = args.x.as<float>();
  const float* branch = args.branch.as<float>();
  for (int64_t i = 0; i < args.x.n_elements(); ++i) x[i] += args.scale * branch[i];
}

void gather(const Tensor& x, const Tensor& rows, const Tensor& out) {
  const int64_t cols = x.cols();
  require(out.rows() == rows.rows() && out.cols() == cols, "gather", "shapes differ");
  for (int64_t i = 0; i < rows.rows(); ++i) {
    const int64_t row = rows.as<int32_t>()[i];
    require(row >= 0 && row < x.rows(), "gather", "row out of range");
    std::memcpy(out.as<float>() + i * cols, x.as<float>() + row * cols, static_cast<size_t>(cols) * sizeof(float));
  }
}

void scale_softcap(const Tensor& x, float scale, float softcap) {
  float* values = x.as<float>();
  for (int64_t i = 0; i < x.n_elements(); ++i) {
    const double y = static_cast<double>(values[i]) * scale;
    values[i] = static_cast<float>(softcap > 0 ? softcap * std::tanh(y / softcap) : y);
  }
}

}  // namespace infer::ref
