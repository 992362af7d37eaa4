// Codes that lie by columns into the packed form of rows. Only where bytes of a word go is known here; what is packed
// is packed.h's business.
#include "infer/error.h"
#include "kernels/cuda/column_part.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/packed.h"

namespace infer::cuda {
namespace {

constexpr int kThreads = 256;

/// The f16 of an integer up to 255. By integers: of a conversion's result ptxas (13.0) stored the lower byte by another
/// conversion, from f16 to an integer.
__device__ __forceinline__ uint16_t f16_of_byte(int n) {
  if (n == 0) return 0;
  const int exponent = 31 - __clz(n);
  return static_cast<uint16_t>((exponent + 15) << 10 | (n << (10 - exponent) & 0x3ff));
}

template <class F>
__device__ __forceinline__ typename F::Block scales_block(uint16_t d, int zero) {
  typename F::Block block{};
  if constexpr (Packed<F>::scales == Scales::half_zero_128)
    block.d[0] = block.d[1] = d, block.zero[0] = block.zero[1] = f16_of_byte(zero);
  else
    block.d = d;
  if constexpr (Packed<F>::scales == Scales::half_zero) block.zero = f16_of_byte(zero);
  return block;
}

/// A thread to eight rows of awq, or to a row of gptq, and a group of 32 columns. Grid: blocks of threads over the
/// rows, times groups. Neighbours read neighbouring words. Bytes: the file's in, as many out; bound by scattered byte
/// stores, at several times the speed of PCIe.
template <class F, bool kAwq>
__global__ void __launch_bounds__(kThreads)
    pack_columns_kernel(const uint8_t* bytes, const ColumnPart part, int64_t cols, uint8_t* packed) {
  constexpr int kBits = Packed<F>::low_bits, kRows = kAwq ? 8 : 1, kWords = kAwq ? kGroup : kBits;
  constexpr int kBlockGroups = F::block / kGroup;
  const int64_t line = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x, n_lines = part.rows / kRows;
  if (line >= n_lines) return;
  const auto* const codes = reinterpret_cast<const uint32_t*>(bytes) + blockIdx.y * n_lines * kWords;
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = codes[i * n_lines + line];

  const int64_t group = part.first_group + blockIdx.y, scale = group / part.groups_to_scale - part.first_scale;
  const auto* const zeros = reinterpret_cast<const uint32_t*>(bytes + part.zeros_at()) + scale * part.n_zero_words;
  const auto* const scales = reinterpret_cast<const uint16_t*>(bytes + part.scales_at()) + scale * part.rows;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int64_t row = line * kRows + k;
    uint8_t stored[kGroup];
    if constexpr (kAwq)
      awq_group(words, k, stored);
    else
      gptq_group(words, kBits, stored);
    if constexpr (kBits == 8)  // stored as signed numbers
      for (int i = 0; i < kGroup; ++i) stored[i] ^= 128;
    const int zero = part.n_zero_words > 0 ? zero_of_row(zeros, kAwq, kBits, part.zero_bias, row) : 1 << (kBits - 1);
    const PackedPlace p = place<F>(cols, row, group);
    uint8_t* const chunk = packed + p.chunk;
    pack_stored<F>(stored, chunk, {p.groups}, p.row, p.group);
    packed_detail::put_scales<F>(scales_block<F>(scales[row], zero), static_cast<int>(group % kBlockGroups), chunk,
                                 Chunk<F>{p.groups}, p.row, p.group);
  }
}

template <class F>
void pack(const void* bytes, const ColumnPart& part, ColumnCodes::Order order, const Tensor& packed,
          cudaStream_t stream) {
  const bool awq = order == ColumnCodes::Order::awq;
  const int64_t lines = awq ? part.rows / 8 : part.rows;
  const dim3 grid(static_cast<unsigned>((lines + kThreads - 1) / kThreads), static_cast<unsigned>(part.n_groups));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kThreads, 0, stream>>>(static_cast<const uint8_t*>(bytes), part, packed.cols(),
                                          packed.as<uint8_t>());
  };
  if constexpr (Packed<F>::low_bits == 4) {
    if (awq) return launch(pack_columns_kernel<F, true>);
  }
  launch(pack_columns_kernel<F, false>);
}

}  // namespace

void pack_columns(const void* bytes, const ColumnPart& part, ColumnCodes::Order order, const Tensor& packed,
                  cudaStream_t stream) {
  if (part.n_groups == 0 || part.rows == 0) return;
  switch (packed.dtype) {
    case DType::Q4_0:
      pack<Q4_0>(bytes, part, order, packed, stream);
      break;
    case DType::W4G:
      pack<W4G>(bytes, part, order, packed, stream);
      break;
    case DType::W4G128:
      pack<W4G128>(bytes, part, order, packed, stream);
      break;
    case DType::Q8_0:
    case DType::W8I:
      pack<Q8_0>(bytes, part, order, packed, stream);
      break;
    default:
      throw Error(ErrorKind::run, "pack columns", "unsupported format", format_name(packed.dtype));
  }
  check(cudaGetLastError(), "pack columns");
}

}  // namespace infer::cuda
