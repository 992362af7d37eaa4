// Formats that lie side by side in files, and have kernels together: what llama.cpp's recipes make of q, k and v. All
// meet int8 activations, which are the same for both.
#pragma once

#include "quant/formats.h"

namespace infer::cuda {

/// Calls function.operator()<F, G>() for two formats that have kernels together; false for others.
template <class Function>
bool visit_format_pair(DType first, DType second, Function&& function) {
  bool known = false;
  const auto consider = [&]<class F, class G>() {
    static_assert(F::block > 1 && G::block > 1);
    if (F::id == first && G::id == second) function.template operator()<F, G>(), known = true;
  };
  consider.template operator()<Q4_K, Q6_K>();
  consider.template operator()<Q5_K, Q6_K>();
  consider.template operator()<Q4_K, Q8_0>();
  consider.template operator()<Q3_K, Q5_K>();
  consider.template operator()<Q3_K, Q4_K>();
  return known;
}

}  // namespace infer::cuda
