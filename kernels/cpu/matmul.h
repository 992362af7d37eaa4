// The CPU's matrix multiplication: out[t, n] = sum_k x[t, k] * w[n, k] + bias[n]. Weights are packed once into tiles of
// 16 rows (packed.h says how), activations are brought into the form that the weights' format wants, and then any
// thread may compute any range of tiles. It knows no threads and allocates nothing.
//
// A number of the result does not depend on m, on which tokens stand beside it, on the tile range or on the thread:
// every accumulator sees its groups of 32 in ascending order, in the same operations, in the one-token and the
// many-token kernel. So a prompt in pieces, at once or token by token gives the same bits (within one Isa).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/tensor.h"

namespace infer::cpu {

/// Rows of a tile: the unit of packing and of sharing work among threads.
inline constexpr int64_t kTileRows = 16;
/// What the addresses of packed weights, activations and scratch must be multiples of.
inline constexpr size_t kMatmulAlignment = 64;

inline int64_t tile_count(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

/// How activations are stored for a weight format. Weights of one form can share one buffer of prepared activations.
enum class ActivationForm {
  f32,   ///< as they are (plain weights)
  int8,  ///< int8 per 32 with a float scale (all quantised formats). A group with a NaN or an infinity becomes NaN.
  /// What int8 left over, quantised in the same way. Both together are activations of 16 bits, for the stages where 8
  /// cost most.
  int8_rest,
};

/// Whether the three functions below take the format at all (every row of quant/formats.h).
bool matmul_supported(DType dtype);
/// Throws Error(bad_file) where the format has no kernel or cols is no multiple of its block.
ActivationForm activation_form(DType dtype);

/// Bytes of the packed weight [rows, cols]: the file's, with rows padded to 16 and every tile to 64 bytes.
size_t packed_bytes(DType dtype, int64_t rows, int64_t cols);
/// Packs the tiles [tile_begin, tile_end) of src (file layout, any alignment, [rows, cols]) to their places in dst,
/// which is the start of the whole packed weight. The layout is the same for every Isa.
void pack(DType dtype, const void* src, int64_t rows, int64_t cols, int64_t tile_begin, int64_t tile_end, void* dst);

/// Bytes of the prepared activations of m tokens of k numbers. Token t lies at t * activation_bytes(form, 1, k).
size_t activation_bytes(ActivationForm form, int64_t m, int64_t k);
/// Prepares the tokens [token_begin, token_end) of x (token t at x + t * x_stride) at their places in dst, which is the
/// start of the whole buffer. Threads may split the token range.
void prepare_activations(Isa isa, ActivationForm form, const float* x, int64_t x_stride, int64_t k, int64_t token_begin,
                         int64_t token_end, void* dst);

/// Scratch of one matmul call, per thread; the same for every format and shape.
size_t matmul_scratch_bytes();

/// Computes the rows of the tiles [tile_begin, tile_end) for m tokens: out[t * out_stride + row].
///   w     packed, [rows, cols]; acts  as prepare_activations wrote them, [m, cols]; bias  f32 [rows] or null
/// Ranges of a multiple of 4 tiles are fastest for m > 8. m tokens of one weight are read once for m <= 8 or, in larger
/// steps, unpacked once for all m.
///   rest  what prepare_activations wrote as int8_rest, or null (quantised formats only)
void matmul(Isa isa, const Tensor& w, const void* acts, int64_t m, float* out, int64_t out_stride, const float* bias,
            int64_t tile_begin, int64_t tile_end, void* scratch, const void* rest = nullptr);

}  // namespace infer::cpu
