// The attention kernels for AVX2.
#include "kernels/cpu/attention_kernels.h"

namespace infer::cpu {

const AttentionTable kAvx2Attention = kAttentionHere;

}  // namespace infer::cpu
