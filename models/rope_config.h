// The rope that a file describes: its base, its scaling and its tables of divisors, read from metadata and tensors.
// What the person at the keyboard wants instead comes through the same metadata, under keys of our own that no
// converter writes: see RopeOptions in infer.h, whose meaning is llama.cpp's.
#pragma once

#include "models/checkpoint.h"
#include "models/config.h"

namespace infer {

/// Keys that replace what the file says, whatever the architecture.
inline constexpr const char *kRopeScalingKey = "infer.rope.scaling.type", *kRopeBaseKey = "infer.rope.freq_base",
                            *kRopeFactorKey = "infer.rope.scaling.factor",
                            *kRopeOriginalKey = "infer.rope.scaling.original_context_length",
                            *kRopeExtKey = "infer.rope.scaling.yarn_ext_factor",
                            *kRopeAttnKey = "infer.rope.scaling.yarn_attn_factor",
                            *kRopeBetaFastKey = "infer.rope.scaling.yarn_beta_fast",
                            *kRopeBetaSlowKey = "infer.rope.scaling.yarn_beta_slow";

/// Of `config` the architecture's name, the size of the heads and the context are there already.
RopeConfig read_rope(const Checkpoint& checkpoint, const Config& config);

}  // namespace infer
