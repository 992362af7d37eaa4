// The encoders for any processor, and the choice between these and those of encode_avx2.cpp and encode_avx512.cpp.
#include "quant/encode.h"

#include "quant/encode_rows.h"

namespace infer {

Encoded encode_weights_avx2(DType dtype, const float* src, const float* importance, void* dst, int64_t n);
Encoded encode_weights_avx512(DType dtype, const float* src, const float* importance, void* dst, int64_t n);
bool decode_weights_avx2(DType dtype, const void* src, float* dst, int64_t n);
bool decode_weights_avx512(DType dtype, const void* src, float* dst, int64_t n);

bool encodable(DType dtype) {
  bool can = false;
  visit_any_format(dtype, [&]<class F>() { can = PlainFormat<F> || HasEncoder<F>; });
  return can;
}

// The lists are those of the flags that CMakeLists.txt gives to the two files.
EncodeLevel encode_level() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
                      __builtin_cpu_supports("avx512vbmi");
  return avx2 && avx512 ? EncodeLevel::avx512 : avx2 ? EncodeLevel::avx2 : EncodeLevel::any;
#else
  return EncodeLevel::any;
#endif
}

Encoded encode_weights(EncodeLevel level, DType dtype, const float* src, const float* importance, void* dst,
                       int64_t n) {
  if (row_bytes(dtype, n) < 0) return {Encoded::unknown, 0};
  if (level == EncodeLevel::avx512) return encode_weights_avx512(dtype, src, importance, dst, n);
  if (level == EncodeLevel::avx2) return encode_weights_avx2(dtype, src, importance, dst, n);
  return encode_row_of(dtype, src, importance, dst, n);
}

Encoded encode_weights(DType dtype, const float* src, const float* importance, void* dst, int64_t n) {
  static const EncodeLevel level = encode_level();
  return encode_weights(level, dtype, src, importance, dst, n);
}

bool decode_weights(EncodeLevel level, DType dtype, const void* src, float* dst, int64_t n) {
  if (level == EncodeLevel::avx512) return decode_weights_avx512(dtype, src, dst, n);
  if (level == EncodeLevel::avx2) return decode_weights_avx2(dtype, src, dst, n);
  return decode_row_of(dtype, src, dst, n);
}

bool decode_weights(DType dtype, const void* src, float* dst, int64_t n) {
  static const EncodeLevel level = encode_level();
  return decode_weights(level, dtype, src, dst, n);
}

}  // namespace infer
