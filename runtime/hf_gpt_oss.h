// The experts of gpt-oss in GGUF's order. The authors' files interleave the rows of gate and up, and hold scales and
// codes of MXFP4 apart, the codes of neighbours in one byte; GGUF has two tensors, a scale before its codes, and the
// code of the value 16 places on in the upper half of the byte.
#pragma once

#include <map>
#include <string_view>
#include <vector>

#include "models/checkpoint.h"
#include "runtime/hf_owned.h"

namespace infer {

/// The tensors of one layer by what they are: gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales.
using GptOssParts = std::map<std::string_view, const HostTensor*>;

/// ffn_gate_exps, ffn_up_exps, ffn_down_exps, yet to be made, and the biases of the first two in memory of `owned`.
/// Throws Error(bad_file) when one is missing or of a shape that does not fit the others.
std::vector<HostTensor> gpt_oss_experts(const Checkpoint& checkpoint, int64_t layer, const GptOssParts& parts,
                                        OwnedBytes& owned);

}  // namespace infer
