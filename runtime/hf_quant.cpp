// gpt-oss comes with its experts in MXFP4, which its table of names takes care of; every other method is refused.
#include "runtime/hf_quant.h"

#include "infer/error.h"

namespace infer {

void require_known_quantisation(const JsonObject& config, std::string_view model_type) {
  const auto quantisation = config.find_object("quantization_config");
  const bool is_gpt_oss = model_type == "gpt_oss";
  if (!quantisation) {
    if (is_gpt_oss) config.refuse("quantization_config", "required key is missing", "", "quant_method \"mxfp4\"");
    return;
  }
  const std::string method = quantisation->get_string("quant_method");
  if (is_gpt_oss && method == "mxfp4") return;
  quantisation->refuse("quant_method", "quantised weights of this kind are not supported", '"' + escaped(method) + '"',
                       is_gpt_oss ? "mxfp4" : "weights in F32, F16 or BF16; or a GGUF file of the model");
}

}  // namespace infer
