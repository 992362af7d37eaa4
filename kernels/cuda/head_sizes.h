// The head sizes that attention has kernels for: this list is the only one. Plain C++, part of every build, since plans
// and refusals need it where there is no GPU.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "quant/host_device.h"

namespace infer::cuda {

using HeadSizes = std::integer_sequence<int, 32, 64, 80, 96, 128, 256>;

#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Function, int... kSizes>
INFER_HD bool visit_in_list(std::integer_sequence<int, kSizes...>, int64_t head_dim, Function&& function) {
  return ((head_dim == kSizes ? (function.template operator()<kSizes>(), true) : false) || ...);
}

/// Calls function.operator()<kHeadDim>() with `head_dim` as a constant; false when there is no kernel for it.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Function>
INFER_HD bool visit_head_size(int64_t head_dim, Function&& function) {
  return visit_in_list(HeadSizes{}, head_dim, function);
}

inline bool has_head_size(int64_t head_dim) {
  bool has = false;
  visit_head_size(head_dim, [&has]<int kHeadDim>() { has = kHeadDim > 0; });
  return has;
}

/// "32, 64, 80", for messages.
template <int... kSizes>
std::string listed(std::integer_sequence<int, kSizes...>) {
  std::string out;
  ((out.append(out.empty() ? "" : ", ").append(std::to_string(kSizes))), ...);
  return out;
}

}  // namespace infer::cuda
