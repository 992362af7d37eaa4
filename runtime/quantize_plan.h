// Which format each tensor of a model gets: the mixtures that people know by llama.cpp's names, chosen by a tensor's
// role and place, and what replaces a format that the length of the rows does not allow. Decides from names, shapes and
// a few metadata; reads no weights.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "infer.h"
#include "models/checkpoint.h"

namespace infer {

enum class MixKind { plain, q2_k, q2_k_s, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, ternary, mxfp4_moe };

/// One name of QuantizeOptions::type.
struct Mix {
  const char* name;
  int64_t file_type;  ///< value of general.file_type
  DType dtype;        ///< what most tensors get
  MixKind kind;
};

const std::vector<Mix>& mixes();
/// In upper or lower case, llama.cpp's short names included ("Q4_K" is Q4_K_M). Error(usage) lists the names.
const Mix& find_mix(const std::string& name);

struct TensorChoice {
  DType dtype;
  std::string note;  ///< as QuantizedTensor::note
};

/// In the order of the checkpoint's tensors. Error(usage) for an unknown format or a malformed pattern.
std::vector<TensorChoice> choose_formats(const Checkpoint& checkpoint, const Mix& mix, const QuantizeOptions& options);

}  // namespace infer
