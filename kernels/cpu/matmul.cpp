// The dispatch from the instruction set and the format to the kernels, once per call.
#include "kernels/cpu/matmul.h"

#include <cstring>

#include "infer/error.h"
#include "kernels/cpu/matmul_table.h"
#include "kernels/cpu/packed.h"

namespace infer::cpu {
namespace {

const MatmulTable& table_of(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return kAvx512Matmul;
    case Isa::avx2:
      return kAvx2Matmul;
    case Isa::scalar:
      break;
  }
  return kScalarMatmul;
}

}  // namespace

size_t matmul_scratch_bytes() { return kScratchBytes; }

void prepare_activations(Isa isa, ActivationForm form, const float* x, int64_t x_stride, int64_t k, int64_t token_begin,
                         int64_t token_end, void* dst) {
  const MatmulTable& table = table_of(isa);
  const auto row_bytes = static_cast<int64_t>(activation_bytes(form, 1, k));
  for (int64_t t = token_begin; t < token_end; ++t) {
    const float* row = x + t * x_stride;
    uint8_t* to = static_cast<uint8_t*>(dst) + t * row_bytes;
    switch (form) {
      case ActivationForm::f32:
        std::memcpy(to, row, static_cast<size_t>(k) * sizeof(float));
        // BF16 weights come two columns at a time; of the second one that there is not they are zero.
        if (k % 2 != 0) std::memset(to + k * static_cast<int64_t>(sizeof(float)), 0, sizeof(float));
        break;
      case ActivationForm::int8:
        table.prepare_int8(row, k, to);
        break;
      case ActivationForm::int8_rest:
        table.prepare_int8_rest(row, k, to);
        break;
    }
  }
}

void matmul(Isa isa, const Tensor& w, const void* acts, int64_t m, float* out, int64_t out_stride, const float* bias,
            int64_t tile_begin, int64_t tile_end, void* scratch, const void* rest) {
  const MatmulFn kernel = table_of(isa).find(w.dtype);
  if (kernel == nullptr) throw Error(ErrorKind::bad_file, "cpu matmul", "no kernel for this weight format");
  if (m < 1 || tile_begin >= tile_end) return;
  kernel({w.as<const uint8_t>(), w.rows(), w.cols(), static_cast<const uint8_t*>(acts),
          static_cast<const uint8_t*>(rest), m, out, out_stride, bias, tile_begin, tile_end,
          static_cast<uint8_t*>(scratch)});
}

}  // namespace infer::cpu
