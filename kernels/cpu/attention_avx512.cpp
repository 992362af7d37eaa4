// The attention kernels for AVX-512.
#include "kernels/cpu/attention_kernels.h"

namespace infer::cpu {

const AttentionTable kAvx512Attention = kAttentionHere;

}  // namespace infer::cpu
