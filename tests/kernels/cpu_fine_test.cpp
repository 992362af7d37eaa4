// Matrices of checkpoints that are made for activations of 16 bits: the cpu gives them two terms of 8.
#include "kernels/backend.h"
#include "quant/encode.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

using namespace infer;

namespace {

using Floats = std::vector<float>;

struct Matrix {
  std::vector<char> bytes;
  Tensor host;
  Matrix(DType type, int64_t rows, int64_t cols, uint32_t seed) {
    const Floats values = random_floats(rows * cols, seed, 0.2f);
    bytes.resize(static_cast<size_t>(tensor_bytes(type, rows, cols)));
    REQUIRE(encode_weights(type, values.data(), nullptr, bytes.data(), rows * cols).fault == Encoded::none);
    host = Tensor(bytes.data(), type, {rows, cols});
  }
};

/// One layer's projection after attention and its hidden layer, for n tokens.
Floats run(const std::string& device, WeightRole role, int64_t n) {
  const int64_t dim = 96, ffn_dim = 160;
  const auto backend = make_backend(device);
  std::vector<Buffer> kept;
  const auto packed = [&](const Matrix& m) {
    const size_t bytes = backend->packed_bytes(m.host, role);
    kept.push_back(bytes > 0 ? backend->allocate(bytes) : nullptr);
    return backend->pack(m.host, role, kept.back().get());
  };
  const Matrix wo(DType::Q8_0, dim, dim, 1), gate(DType::Q4_0, ffn_dim, dim, 2), up(DType::Q4_0, ffn_dim, dim, 3),
      down(DType::Q8_0, dim, ffn_dim, 4);
  Floats x = random_floats(n * dim, 5), attn = random_floats(n * dim, 6), norm = random_floats(dim, 7),
         branch(x.size()), normed(x.size()), g(static_cast<size_t>(n * ffn_dim)), u(g.size());
  AttnOutArgs out;
  out.attn = view(attn, {n, dim}), out.wo = packed(wo);
  out.add.x = view(x, {n, dim}), out.add.branch = view(branch, {n, dim});
  backend->attn_out(out);
  FfnArgs ffn;
  ffn.norm = view(norm, {dim});
  ffn.w_gate = packed(gate), ffn.w_up = packed(up), ffn.w_down = packed(down);
  ffn.add = out.add, ffn.normed = view(normed, {n, dim});
  ffn.gate = view(g, {n, ffn_dim}), ffn.up = view(u, {n, ffn_dim});
  backend->ffn(ffn);
  return x;
}

double nmse(const Floats& found, const Floats& wanted) {
  double error = 0, power = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += (static_cast<double>(found[i]) - wanted[i]) * (static_cast<double>(found[i]) - wanted[i]);
    power += static_cast<double>(wanted[i]) * wanted[i];
  }
  return error / power;
}

}  // namespace

TEST_CASE("cpu: activations that meet a fine matrix keep 16 bits") {
  for (const int64_t n : {1, 2, 3, 40}) {
    INFO(n << " tokens");
    const Floats wanted = run("ref", WeightRole::fine_matrix, n);
    CHECK(run("ref", WeightRole::matrix, n) == wanted);
    CHECK(nmse(run("cpu", WeightRole::matrix, n), wanted) > 1e-6);  // what 8 bits cost
    CHECK(nmse(run("cpu", WeightRole::fine_matrix, n), wanted) < 1e-8);
  }
}
