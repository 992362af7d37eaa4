// The names of the number formats. The value of a DType is GGUF's tensor type number, so that reading a file needs no
// translation; formats that GGUF does not know take numbers from kPrivate up. Every number GGUF ever gave out has a
// name here so that a refusal can use it; which of them can be decoded, and what they mean, is in formats.h.
#pragma once

#include <cstdint>

namespace infer {

enum class DType : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q4_2 = 4,
  Q4_3 = 5,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q8_1 = 9,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  Q8_K = 15,
  IQ2_XXS = 16,
  IQ2_XS = 17,
  IQ3_XXS = 18,
  IQ1_S = 19,
  IQ4_NL = 20,
  IQ3_S = 21,
  IQ2_S = 22,
  IQ4_XS = 23,
  I8 = 24,
  I16 = 25,
  I32 = 26,
  I64 = 27,
  F64 = 28,
  IQ1_M = 29,
  BF16 = 30,
  Q4_0_4_4 = 31,
  Q4_0_4_8 = 32,
  Q4_0_8_8 = 33,
  TQ1_0 = 34,
  TQ2_0 = 35,
  IQ4_NL_4_4 = 36,
  IQ4_NL_4_8 = 37,
  IQ4_NL_8_8 = 38,
  MXFP4 = 39,
  NVFP4 = 40,
  Q1_0 = 41,
  kPrivate = 0x10000,
  F8_E4M3 = kPrivate,  // from here on: of safetensors
  F8_E5M2,
  U8,
  W4G,     // made while loading, see w4g.h
  W4G128,  // the same
  W8F,     // made while loading for a GPU, see w8f.h
  W8I,     // the same, see w8i.h
};

}  // namespace infer
