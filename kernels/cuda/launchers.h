// What the .cu files offer to the backend: one launcher per op, taking the op's argument struct (device addresses) and
// a stream. Launchers enqueue and return; they allocate nothing, synchronise nothing and throw Error when CUDA refuses
// a launch. Activations are float32 except where a comment says that bf16 and f16 are accepted too.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/column_part.h"
#include "kernels/cuda/operand.h"
#include "kernels/cuda/packed.h"
#include "kernels/ops.h"

namespace infer::cuda {

// ---- pointwise.cu ----------------------------------------------------------------------------------------------
void embed(const EmbedArgs&, cudaStream_t);        ///< table: file blocks (layout 0) of any format
void norm(const NormArgs&, cudaStream_t);          ///< out: f32, f16, bf16 or an operand of e4m3
void activate(const ActivateArgs&, cudaStream_t);  ///< out: f32, f16 or bf16
void add(const AddArgs&, cudaStream_t);
void gather(const Tensor& x, const Tensor& rows, const Tensor& out, cudaStream_t);
void scale_softcap(const Tensor& x, float scale, float softcap, cudaStream_t);
/// f32 to f16 (clamped to +-65504), bf16 or an operand of e4m3.
void convert(const Tensor& from, const Tensor& to, cudaStream_t);

// ---- e4m3_rows.cu: operands of e4m3 (e4m3.h), in rows of a multiple of 16 numbers at multiples of 16 bytes -------
void convert_e4m3(const Tensor& from, const Tensor& out, cudaStream_t);
void norm_e4m3(const NormArgs&, cudaStream_t);
void activate_bf16_e4m3(const ActivateArgs&, cudaStream_t);  ///< gate and up in bf16

// ---- rope_store.cu ---------------------------------------------------------------------------------------------
void rope_store(const RopeStoreArgs&, cudaStream_t);
/// q, k and v side by side in the f32 rows of one product, to which the biases (or null) are still to be added, and
/// what rope_store() is to do with them. What `args` has for k and v is left alone.
struct MergedHeads {
  RopeStoreArgs args;
  Tensor merged, bq, bk, bv;
};
void rope_store_merged(const MergedHeads&, cudaStream_t);

// ---- attention_prefill.cu, attention_decode.cu -----------------------------------------------------------------
/// Scratch for attention_decode: partial results of split sequences.
struct AttentionScratch {
  float* partial = nullptr;    ///< [max_units, 8, head_dim + 2]: sums, maximum and total of 8 query heads
  int32_t* arrived = nullptr;  ///< [max_tokens * n_kv_heads], zero between launches
  int64_t max_units = 0;
  int64_t partial_floats = 0;  ///< of `partial`, where attention_in_parts() has it
  void* copy = nullptr;        ///< of the result, in bf16 or as an Int8Operand<1>
  PassedForm copy_form = PassedForm::rows;
  int copy_tokens = 0;  ///< of an operand
};
/// Flash attention on tensor cores for any number of new tokens per sequence. out: f32, f16 or bf16.
void attention_prefill(const AttentionArgs&, cudaStream_t);
/// The same with every token's positions cut into parts by its sequence alone (attention_plan.h), so that its bits do
/// not depend on the others of the step. `partial`: scratch for as many tokens at a time as it has room for.
void attention_in_parts(const AttentionArgs&, float* partial, int64_t partial_floats, cudaStream_t);
/// One new token per sequence (n_tokens == n_seqs); splits long sequences over the SMs. out: f32, f16 or bf16. `heads`,
/// or null: does what rope_store_merged() would have done before, but leaves args.q alone. Reads tables, positions and
/// slots before the kernel before it is done: what writes them lets no other kernel start early.
void attention_decode(const AttentionArgs&, const MergedHeads* heads, const AttentionScratch&, int n_sms, cudaStream_t);

// ---- pack.cu: layouts in packed.h ------------------------------------------------------------------------------
/// Rows [row_begin, row_begin + n_rows) of a matrix from file blocks in device memory; row_begin is a multiple of 16.
/// Plain weights may become another type of 16 bits, that of `packed`.
void pack_rows(DType, const void* blocks, int64_t row_begin, int64_t n_rows, const Tensor& packed, cudaStream_t);
/// pack_columns.cu: some columns of all rows of a matrix in Q4_0, W4G, W4G128, Q8_0 or W8I, from the part's bytes in
/// device memory.
void pack_columns(const void* bytes, const ColumnPart& part, ColumnCodes::Order, const Tensor& packed, cudaStream_t);
/// Rows of a packed or plain matrix as f16 (clamped to +-65504) or bf16 [n_rows, cols], row-major. row_begin is a
/// multiple of 4.
void dequantize_rows(const Tensor& packed, int64_t row_begin, int64_t n_rows, const Tensor& out, cudaStream_t);
/// The same of a packed matrix as e4m3 [n_rows, cols], with the factors of its rows.
void unpack_e4m3(const Tensor& packed, int64_t row_begin, int64_t n_rows, void* out, float* scales, cudaStream_t);

// ---- decode.cu -------------------------------------------------------------------------------------------------
/// Up to 4 rows of x against any packed or plain w, in f32; accumulate adds to what out holds.
void matvec(const MatmulArgs&, bool accumulate, cudaStream_t);

// ---- sample.cu -------------------------------------------------------------------------------------------------
/// Two launches for any number of rows. args.host_out is pinned memory.
void sample(const SampleArgs&, cudaStream_t);

// ---- epilogues.cu: what closes a product of cuBLASLt -----------------------------------------------------------
/// out[m, n] += bias[n]
void add_bias(const Tensor& out, const Tensor& bias, cudaStream_t);
/// activate() with gate, up and out in bf16, rows of a multiple of 8 numbers at addresses that are multiples of 16.
/// `stride`: numbers from a row of gate and of up to the next; 0: as in out.
void activate_bf16(const ActivateArgs&, cudaStream_t, int64_t stride = 0);

// ---- limits.cu: what limits.cpp times --------------------------------------------------------------------------
/// Reads `bytes` (a multiple of 16) of device memory once; sink: 4 bytes that are written almost never.
void read_memory(const void* data, size_t bytes, uint32_t* sink, int n_sms, cudaStream_t);
/// n (an even number of) random bf16 numbers in (-1, 1).
void random_bf16(void* out, int64_t n, int n_sms, cudaStream_t);

}  // namespace infer::cuda
