// A complete small llama model as a GGUF file: vocabulary, chat template, random weights. Tests that need to generate
// text make one instead of downloading one. The weights are small integers times a power of two, so F32, F16, BF16 and
// Q8_0 store the same model exactly.
#pragma once

#include <cstdint>
#include <string>

#include "quant/dtype.h"
#include "tests/runtime/gguf_writer.h"

namespace infer::test {

struct TinyModel {
  DType weights = DType::F32;  ///< F32, F16, BF16 or Q8_0; norms are F32
  bool spm = false;            ///< a sentencepiece vocabulary instead of byte-level BPE
  bool chat_template = true;   ///< ChatML
  int64_t n_layers = 2, dim = 64, n_heads = 4, n_kv_heads = 2, ffn_dim = 128, context = 512;
  int64_t n_experts = 0, n_active = 2;  ///< n_experts 0: dense; else ffn_dim is the width of each
  int value_exponent = 9;               ///< weights of the values are integers times 2^-value_exponent
  uint32_t seed = 1;
};

GgufWriter tiny_model(const TinyModel& model = {});
void write_tiny_model(const std::string& path, const TinyModel& model = {});

}  // namespace infer::test
