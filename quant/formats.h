// ★ The one table of number formats. A new format is a header and a row here; nothing else in the program enumerates
// them or switches over a DType. It knows sizes and single rows; tensors, files and devices are other layers' business.
//
// Compile-time code goes through visit_format, run-time code through the functions at the end. No function here
// allocates, throws or prints; a request that makes no sense is answered with -1, false or a null pointer.
#pragma once

#include <cstdint>
#include <string_view>

#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/plain.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"
#include "quant/w4g.h"
#include "quant/w4g128.h"
#include "quant/w8f.h"
#include "quant/w8i.h"

namespace infer {

template <Format... F>
struct FormatList {
  static constexpr int size = sizeof...(F);
};

/// Formats that every kernel computes with.
using Formats = FormatList<F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
                           MXFP4, W4G, W4G128>;

/// Formats that files have and no kernel computes with: their rows can be decoded here, a model of them is refused.
using RowFormats = FormatList<TQ1_0, TQ2_0, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S>;

/// Formats that are made while loading for a GPU, the only one that computes with them.
using MadeFormats = FormatList<W8F, W8I>;

template <class... A, class... B>
FormatList<A..., B...> joined_lists(FormatList<A...>, FormatList<B...>);
/// Formats that a GPU's kernels compute with.
using GpuFormats = decltype(joined_lists(Formats{}, MadeFormats{}));

template <class... F>
INFER_HD constexpr bool in_list(FormatList<F...>, DType dtype) {
  return ((F::id == dtype) || ...);
}

#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Function, class... F>
INFER_HD bool visit_in_list(FormatList<F...>, DType dtype, Function&& function) {
  return ((F::id == dtype ? (function.template operator()<F>(), true) : false) || ...);
}

/// Calls function.operator()<F>() for the format named `dtype` and returns true; false if the table has no such format.
///   visit_format(dtype, [&]<class F>() { … F::block … });
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Function>
INFER_HD bool visit_format(DType dtype, Function&& function) {
  return visit_in_list(Formats{}, dtype, function);
}

/// The same for the kernels of GPUs.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Function>
INFER_HD bool visit_gpu_format(DType dtype, Function&& function) {
  return visit_in_list(GpuFormats{}, dtype, function);
}

/// The same over all lists. For host code that reads rows: kernels have no business with RowFormats.
template <class Function>
bool visit_any_format(DType dtype, Function&& function) {
  return visit_in_list(GpuFormats{}, dtype, function) || visit_in_list(RowFormats{}, dtype, function);
}

struct FormatInfo {
  DType id;
  const char* name;
  int64_t block;        ///< weights to a block; a row's length is a multiple of it
  int64_t block_bytes;  ///< bytes of a block in a file
};

/// Name and size of any type GGUF knows, decodable or not; null for a number it never gave out.
const FormatInfo* find_format(DType dtype);
/// The same by name, in upper or lower case ("q4_k", "Q4_K").
const FormatInfo* find_format(std::string_view name);
/// Whether the format is in Formats, so that decode_row and the kernels can read it.
bool decodable(DType dtype);
/// Whether it is in GpuFormats.
bool gpu_decodable(DType dtype);
/// Whether decode_row can read it: all lists.
bool row_decodable(DType dtype);

/// Bytes of `n` weights in a row. -1 if the type is unknown, n is negative or no multiple of the block, or the result
/// does not fit. Sizes of tensors are computed here and in tensor_bytes only.
int64_t row_bytes(DType dtype, int64_t n);
/// Bytes of `rows` rows of `n` weights; -1 as above.
int64_t tensor_bytes(DType dtype, int64_t rows, int64_t n);

/// Decodes n weights. `src` needs no alignment. False, with nothing written, where row_bytes says -1 or the format is
/// not row_decodable.
bool decode_row(DType dtype, const void* src, float* dst, int64_t n);
/// Encodes n floats as F32, F16, BF16, Q8_0 or Q4_0, as KV caches do it: at once, and whatever the floats are. `dst`
/// needs no alignment. False, with nothing written, for other formats and where row_bytes says -1. Weights go through
/// encode.h.
bool encode_row(DType dtype, const float* src, void* dst, int64_t n);

}  // namespace infer
