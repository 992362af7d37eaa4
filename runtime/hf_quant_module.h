// One quantised module of a Hugging Face folder, read: its tensors, of whose shapes and types each is checked against
// the others before a byte of it is used, become a matrix. One function to a layout.
#pragma once

#include <map>
#include <string>

#include "models/checkpoint.h"
#include "runtime/hf_quant.h"
#include "runtime/hf_quant_matrix.h"

namespace infer {

/// "model.layers.0.mlp.up_proj" and its tensors by the last part of their names: "qweight", "scales".
struct HfModule {
  std::string name;
  std::map<std::string, const HostTensor*, std::less<>> parts;
};

/// The module's weight in a format that kernels know, yet to be made of the bytes of its parts; `options` as keep() has
/// them. Throws Error(bad_file).
KeptMatrix read_module(const Checkpoint& checkpoint, const HfQuant& quant, const HfModule& module,
                       const KeepOptions& options);

}  // namespace infer
