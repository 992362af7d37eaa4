// The encoders once more, for processors with AVX2: sixteen lanes are two registers there.
#include "quant/encode_rows.h"

namespace infer {

Encoded encode_weights_avx2(DType dtype, const float* src, const float* importance, void* dst, int64_t n) {
  return encode_row_of(dtype, src, importance, dst, n);
}

bool decode_weights_avx2(DType dtype, const void* src, float* dst, int64_t n) {
  return decode_row_of(dtype, src, dst, n);
}

}  // namespace infer
