// The attention kernels for any x86-64.
#include "kernels/cpu/attention_kernels.h"

namespace infer::cpu {

const AttentionTable kScalarAttention = kAttentionHere;

}  // namespace infer::cpu
