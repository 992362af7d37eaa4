// Primitives that read weights: embedding lookup and matrix product, on every format of quant/formats.h as the file
// stores it. A weight row is decoded once per call and multiplied with every activation row in double.
#include <vector>

#include "kernels/ref/ref.h"
#include "quant/formats.h"

namespace infer::ref {
namespace {

const char* row_address(const Tensor& w, int64_t row) { return w.as<char>() + row * row_bytes(w.dtype, w.cols()); }

void require_plain(const Tensor& w, const char* op) {
  require(w.layout == 0 && w.n_dims == 2, op, "weight is not a plain matrix");
  require(gpu_decodable(w.dtype) && row_bytes(w.dtype, w.cols()) >= 0, op,
          "no such format, or rows that split a block");
}

}  // namespace

void embed(const EmbedArgs& args) {
  require_plain(args.table, "embed");
  const int64_t dim = args.table.cols();
  require(args.out.rows() == args.ids.rows() && args.out.cols() == dim, "embed", "shapes differ");
  for (int64_t t = 0; t < args.ids.rows(); ++t) {
    const int64_t id = args.ids.as<int32_t>()[t];
    require(id >= 0 && id < args.table.rows(), "embed", "token id out of range");
    float* out = args.out.as<float>() + t * dim;
    decode_row(args.table.dtype, row_address(args.table, id), out, dim);
    for (int64_t i = 0; i < dim; ++i) out[i] *= args.scale;
  }
}

void matmul(const MatmulArgs& args) {
  require_plain(args.w, "matmul");
  const int64_t m = args.x.rows(), n = args.w.rows(), k = args.w.cols();
  require(args.x.cols() == k && args.out.rows() == m && args.out.cols() == n, "matmul", "shapes differ");
  require(!args.bias || args.bias.n_elements() == n, "matmul", "bias of another length");
  std::vector<float> w(static_cast<size_t>(k));
  for (int64_t row = 0; row < n; ++row) {
    decode_row(args.w.dtype, row_address(args.w, row), w.data(), k);
    const double bias = args.bias ? args.bias.as<float>()[row] : 0;
    for (int64_t i = 0; i < m; ++i) {
      const float* x = args.x.as<float>() + i * k;
      double sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(x[j]) * w[static_cast<size_t>(j)];
      args.out.as<float>()[i * n + row] = static_cast<float>(sum + bias);
    }
  }
}

}  // namespace infer::ref
