// Which types of keys and values have attention kernels of their own: this table is the only one, for the choice of a
// kernel as for the warning of a pair that has none. Any two types of a cache compute; a pair that is not here, or has
// no tensor cores here, goes by plain arithmetic in f32, one number after another. Plain C++, part of every build.
#pragma once

#include <cstddef>
#include <iterator>

#include "quant/dtype.h"

namespace infer::cuda {

struct CachePairRow {
  DType k, v;
  bool tensor_cores;
  bool persistent;  ///< the persistent kernel has it
};

// Of two types those that are worth having: one of them quantised, and values not more finely than keys but for f16.
inline constexpr CachePairRow kCachePairs[] = {
    {DType::F16, DType::F16, true, true},   {DType::BF16, DType::BF16, true, true},
    {DType::Q8_0, DType::Q8_0, true, true}, {DType::Q4_0, DType::Q4_0, true, true},
    {DType::Q8_0, DType::Q4_0, true, true}, {DType::Q8_0, DType::F16, true, false},
    {DType::F16, DType::Q8_0, true, false}, {DType::F16, DType::Q4_0, true, false},
    {DType::F32, DType::F32, false, true},
};
inline constexpr size_t kNCachePairs = std::size(kCachePairs);

constexpr CachePairRow find_cache_pair(DType k, DType v) {
  for (const CachePairRow& row : kCachePairs)
    if (row.k == k && row.v == v) return row;
  return {k, v, false, false};
}

}  // namespace infer::cuda
