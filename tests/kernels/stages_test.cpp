// The stages' default bodies on ref against the same stage written out in double, and what stages cost.
#include <cmath>

#include "kernels/backend.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

using namespace infer;

namespace {

using Matrix = std::vector<std::vector<double>>;

Matrix matrix(const std::vector<float>& values, size_t rows) {
  const size_t cols = values.size() / rows;
  Matrix out(rows, std::vector<double>(cols));
  for (size_t i = 0; i < values.size(); ++i) out[i / cols][i % cols] = values[i];
  return out;
}

Matrix normed(const Matrix& x, const std::vector<float>& weight, double eps) {
  Matrix out = x;
  for (auto& row : out) {
    double sum = 0;
    for (double value : row) sum += value * value;
    for (size_t i = 0; i < row.size(); ++i)
      row[i] *= weight[i] / std::sqrt(sum / static_cast<double>(row.size()) + eps);
  }
  return out;
}

Matrix product(const Matrix& x, const std::vector<float>& w, const std::vector<float>& bias) {
  const size_t cols = x[0].size(), n = w.size() / cols;
  Matrix out(x.size(), std::vector<double>(n));
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < n; ++j) {
      out[i][j] = bias.empty() ? 0 : bias[j];
      for (size_t k = 0; k < cols; ++k) out[i][j] += x[i][k] * w[j * cols + k];
    }
  }
  return out;
}

void check_close(const std::vector<float>& got, const Matrix& want) {
  size_t at = 0;
  for (const auto& row : want) {
    for (double value : row) CHECK(got[at++] == Approx(value).epsilon(1e-5).margin(1e-6));
  }
  CHECK(at == got.size());
}

constexpr int64_t kTokens = 3, kDim = 8, kFfn = 12, kVocab = 10;

}  // namespace

TEST_CASE("the stage attn_in is norm, projections with biases, rotation, and the write into the cache") {
  const auto ref = make_backend("ref");
  const int64_t heads = 2, kv_heads = 1, head_dim = 4;
  std::vector<float> x = random_floats(kTokens * kDim, 1), norm = random_floats(kDim, 2), scratch(x.size());
  std::vector<float> wq = random_floats(heads * head_dim * kDim, 3), wk = random_floats(kv_heads * head_dim * kDim, 4),
                     wv = random_floats(kv_heads * head_dim * kDim, 5), bq = random_floats(heads * head_dim, 6),
                     bk = random_floats(kv_heads * head_dim, 7);
  std::vector<float> q(kTokens * heads * head_dim), k(kTokens * head_dim), v(kTokens * head_dim);
  std::vector<float> k_cache(2 * kPageTokens * head_dim), v_cache(k_cache), cos_sin(16 * 2 * 2);
  for (int64_t p = 0; p < 16; ++p) {
    for (int64_t i = 0; i < 2; ++i) {
      cos_sin[static_cast<size_t>((p * 2 + i) * 2)] = static_cast<float>(std::cos(p * (i + 1)));
      cos_sin[static_cast<size_t>((p * 2 + i) * 2 + 1)] = static_cast<float>(std::sin(p * (i + 1)));
    }
  }
  std::vector<int32_t> positions = {4, 5, 9}, slots = {0, 33, 7};
  AttnInArgs args;
  args.x = view(x, {kTokens, kDim}), args.norm = view(norm, {kDim}), args.normed = view(scratch, {kTokens, kDim});
  args.wq = view(wq, {heads * head_dim, kDim}), args.wk = view(wk, {head_dim, kDim}),
  args.wv = view(wv, {head_dim, kDim});
  args.bq = view(bq, {heads * head_dim}), args.bk = view(bk, {head_dim});
  RopeStoreArgs& r = args.rope_store;
  r.q = view(q, {kTokens, heads, head_dim}), r.k = view(k, {kTokens, kv_heads, head_dim});
  r.v = view(v, {kTokens, kv_heads, head_dim});
  r.rope = {view(cos_sin, {16, 2, 2}), false};
  r.positions = view(positions, {kTokens}), r.slots = view(slots, {kTokens});
  r.k_cache = view(k_cache, {2, kv_heads, kPageTokens, head_dim}),
  r.v_cache = view(v_cache, {2, kv_heads, kPageTokens, head_dim});
  ref->attn_in(args);

  const Matrix y = normed(matrix(x, kTokens), norm, args.eps);
  Matrix want_q = product(y, wq, bq), want_k = product(y, wk, bk), want_v = product(y, wv, {});
  const auto rotate = [&](std::vector<double>& row, size_t head, int32_t position) {
    for (size_t i = 0; i < 2; ++i) {
      double &a = row[head * 4 + i], &b = row[head * 4 + i + 2];
      const double angle = position * (static_cast<double>(i) + 1), a0 = a, b0 = b;
      a = a0 * std::cos(angle) - b0 * std::sin(angle);
      b = a0 * std::sin(angle) + b0 * std::cos(angle);
    }
  };
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t h = 0; h < 2; ++h) rotate(want_q[t], h, positions[t]);
    rotate(want_k[t], 0, positions[t]);
  }
  check_close(q, want_q);
  for (size_t t = 0; t < kTokens; ++t) {
    const auto cell = static_cast<std::ptrdiff_t>(slots[t] * head_dim);
    check_close({k_cache.begin() + cell, k_cache.begin() + cell + head_dim}, {want_k[t]});
    check_close({v_cache.begin() + cell, v_cache.begin() + cell + head_dim}, {want_v[t]});
  }
}

TEST_CASE("the stage attn_out adds the projected branch, normed when asked") {
  const auto ref = make_backend("ref");
  const bool post_norm = GENERATE(false, true);
  std::vector<float> attn = random_floats(kTokens * 6, 1), wo = random_floats(kDim * 6, 2), bo = random_floats(kDim, 3);
  std::vector<float> x = random_floats(kTokens * kDim, 4), norm = random_floats(kDim, 5), branch(x.size());
  Matrix want = matrix(x, kTokens), added = product(matrix(attn, kTokens), wo, bo);
  AttnOutArgs args{view(attn, {kTokens, 6}), view(wo, {kDim, 6}), view(bo, {kDim}), {}};
  args.add.x = view(x, {kTokens, kDim}), args.add.branch = view(branch, {kTokens, kDim});
  args.add.scale = 0.25f;
  if (post_norm) {
    args.add.norm = view(norm, {kDim});
    added = normed(added, norm, args.add.eps);
  }
  ref->attn_out(args);
  for (size_t t = 0; t < want.size(); ++t) {
    for (size_t i = 0; i < want[t].size(); ++i) want[t][i] += 0.25 * added[t][i];
  }
  check_close(x, want);
}

TEST_CASE("the stage ffn is norm, gate, up, activation, down and residual") {
  const auto ref = make_backend("ref");
  const bool gelu = GENERATE(false, true);
  std::vector<float> x = random_floats(kTokens * kDim, 1), norm = random_floats(kDim, 2), normed_x(x.size()), branch(x);
  std::vector<float> w_gate = random_floats(kFfn * kDim, 3), w_up = random_floats(kFfn * kDim, 4),
                     w_down = random_floats(kDim * kFfn, 5), b_up = random_floats(kFfn, 6),
                     post = random_floats(kDim, 7);
  std::vector<float> gate(kTokens * kFfn), up(kTokens * kFfn);
  const Matrix y = normed(matrix(x, kTokens), norm, 1e-5);
  Matrix want = matrix(x, kTokens), g = product(y, w_gate, {}), u = product(y, w_up, b_up);
  for (size_t t = 0; t < g.size(); ++t) {
    for (size_t i = 0; i < g[t].size(); ++i) {
      const double z = g[t][i], inner = std::sqrt(2 / std::acos(-1.0)) * (z + 0.044715 * z * z * z);
      g[t][i] = (gelu ? z / (1 + std::exp(-2 * inner)) : z / (1 + std::exp(-z))) * u[t][i];
    }
  }
  const Matrix down = normed(product(g, w_down, {}), post, 1e-5);
  for (size_t t = 0; t < want.size(); ++t) {
    for (size_t i = 0; i < want[t].size(); ++i) want[t][i] += down[t][i];
  }
  FfnArgs args;
  args.norm = view(norm, {kDim});
  args.w_gate = view(w_gate, {kFfn, kDim}), args.w_up = view(w_up, {kFfn, kDim}),
  args.w_down = view(w_down, {kDim, kFfn});
  args.b_up = view(b_up, {kFfn});
  args.activation = gelu ? Activation::gelu_tanh : Activation::silu;
  args.add.x = view(x, {kTokens, kDim}), args.add.branch = view(branch, {kTokens, kDim}),
  args.add.norm = view(post, {kDim});
  args.normed = view(normed_x, {kTokens, kDim});
  args.gate = view(gate, {kTokens, kFfn}), args.up = view(up, {kTokens, kFfn});
  ref->ffn(args);
  check_close(x, want);
}

TEST_CASE("the stage logits takes the wanted rows through norm, head, scale and softcap") {
  const auto ref = make_backend("ref");
  std::vector<float> x = random_floats(kTokens * kDim, 1), norm = random_floats(kDim, 2),
                     head = random_floats(kVocab * kDim, 3);
  std::vector<float> scratch(2 * kDim), out(2 * kVocab);
  std::vector<int32_t> rows = {2, 0};
  const Matrix all = product(normed(matrix(x, kTokens), norm, 1e-5), head, {});
  Matrix want = {all[2], all[0]};
  for (auto& row : want) {
    for (double& value : row) value = 3 * std::tanh(value * 0.5 / 3);
  }
  LogitsArgs args;
  args.x = view(x, {kTokens, kDim}), args.rows = view(rows, {2}), args.norm = view(norm, {kDim});
  args.head = view(head, {kVocab, kDim}), args.scale = 0.5f, args.softcap = 3;
  args.normed = view(scratch, {2, kDim}), args.out = view(out, {2, kVocab});
  ref->logits(args);
  check_close(out, want);
}

TEST_CASE("costs count weights once and two operations per multiply-add") {
  std::vector<float> x(kTokens * kDim), out(kTokens * kFfn), q(kTokens * 2 * 4), cache(kPageTokens * 4);
  std::vector<char> w(12 * 34);
  const MatmulArgs matmul{
      view(x, {kTokens, kDim}), Tensor(w.data(), DType::Q8_0, {12, 32}), {}, view(out, {kTokens, 12})};
  const OpCost c = cost(matmul);
  CHECK(c.weight_bytes == 12 * 34);
  CHECK(c.activation_bytes == 4 * (kTokens * kDim + kTokens * 12));
  CHECK(c.flops == 2.0 * kTokens * 12 * 32);

  AttentionArgs attention;
  attention.q = attention.out = view(q, {kTokens, 2, 4});
  attention.k_cache = attention.v_cache = view(cache, {1, 1, kPageTokens, 4});
  CHECK(cost(attention, 30).activation_bytes == 2 * 4 * kTokens * 8 + 30 * 2 * 16);
  CHECK(cost(attention, 30).flops == 4 * 30 * 8);

  FfnArgs ffn;
  std::vector<float> w_gate(kFfn * kDim), w_down(kDim * kFfn);
  ffn.w_gate = ffn.w_up = view(w_gate, {kFfn, kDim}), ffn.w_down = view(w_down, {kDim, kFfn});
  ffn.add.x = ffn.add.branch = ffn.normed = view(x, {kTokens, kDim});
  ffn.gate = ffn.up = view(out, {kTokens, kFfn});
  CHECK(cost(ffn).weight_bytes == 3 * 4 * kFfn * kDim);
  CHECK(cost(ffn).flops >= 3 * 2.0 * kTokens * kFfn * kDim);
}
