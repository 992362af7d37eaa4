// How the matrices of a Hugging Face folder are quantised: quantization_config of config.json, and quantize_config.json
// beside it, read with suspicion. A method, version, strategy or number of bits that is not known is refused by name;
// lists of modules that were left as they are need no reading, since the tensors say it. Bytes are
// hf_quant_tensors.h's.
#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/json_file.h"

namespace infer {

enum class QuantMethod {
  none,
  mxfp4,  ///< gpt-oss: its table of names takes care of the experts
  awq,
  gptq,
  packed_ints,  ///< compressed-tensors: pack-quantized
  ints,         ///< compressed-tensors: int-quantized
  floats,       ///< compressed-tensors: float-quantized; fp8
};

struct HfQuant {
  QuantMethod method = QuantMethod::none;
  int bits = 0;
  int64_t scale_rows = 0, scale_cols = 0;  ///< how many share a scale; 0: all
  bool symmetric = false;                  ///< no zero points, or all in the middle
  bool any_order = false;                  ///< the columns of a group need not lie together
  int zero_bias = 0;                       ///< what is added to a zero point of the file
  bool operator==(const HfQuant&) const = default;
};

/// Throws Error(bad_file) naming path, key, found and allowed.
HfQuant read_quantisation(const JsonObject& config, std::string_view model_type);
/// With what quantize_config.json says, which must not be something else.
HfQuant with_quantize_config(const HfQuant& quant, const JsonObject& quantize_config);

}  // namespace infer
