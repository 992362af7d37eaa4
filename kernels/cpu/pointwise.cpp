// Chooses the pointwise kernels of an instruction set.
#include "kernels/cpu/pointwise.h"

namespace infer::cpu {

const PointwiseTable& pointwise(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return kAvx512Pointwise;
    case Isa::avx2:
      return kAvx2Pointwise;
    case Isa::scalar:
      break;
  }
  return kScalarPointwise;
}

}  // namespace infer::cpu
