// Primitives and stages of the graph and eager ways: which kernel does what for how many rows. Three ways lead through
// a product, see Way. Stages exist for the two that use tensor cores: they narrow activations once and let the product
// itself add to the residual stream. While run() records, everything goes to the recorder instead.
#include <algorithm>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/packed.h"
#include "kernels/cuda/sizes.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

constexpr int64_t kMatvecRows = 4;  ///< rows of x that one matvec takes
constexpr int64_t kMatvecMost = 2;  ///< rows up to which a quantised weight is read by matvec, where both ways could
constexpr int64_t kFewMost = 128;   ///< rows from which unpacking a quantised weight pays: 32 read it once
constexpr size_t kPartialBytes = size_t{32} << 20;  ///< sums of parts of few rows' products
constexpr int kMaxArrivals = 4096;
constexpr size_t kUnpackedBytes = (size_t{128} << 20) * UnpackAhead::kHalves;
constexpr int kAttentionUnitsPerSm = 16;  ///< partial results of split sequences: twice what splitting asks for

int64_t element_bytes(DType dtype) { return row_bytes(dtype, 1); }
bool is_plain(DType dtype) { return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16; }

/// The type in which activations meet a weight in cuBLASLt. F32 weights lose nothing; bf16 holds whatever a quantised
/// weight can be.
DType narrow_type(DType w) { return w == DType::F32 || w == DType::F16 ? w : DType::BF16; }

/// `rows` rows of a row-major matrix from row `begin` on.
Tensor row_range(const Tensor& t, int64_t begin, int64_t rows) {
  return Tensor(t.as<char>() + begin * t.cols() * element_bytes(t.dtype), t.dtype, {rows, t.cols()});
}

/// The memory of `t` as a matrix of another type and shape, which must fit.
Tensor memory_as(const Tensor& t, DType dtype, int64_t rows, int64_t cols) {
  return Tensor(t.data, dtype, {rows, cols});
}

/// How a product of m rows of x with a weight is made.
enum class Way {
  matvec,  ///< int8, 16- or 32-bit activations, up to 4 rows a pass, packed weights as they are
  few,     ///< bf16 activations, packed weights unpacked in registers: memory's speed for up to 32 rows
  wide,    ///< 16-bit activations, quantised weights unpacked into scratch, cuBLASLt: the tensor cores' speed
};

/// Tensor cores for products of narrowed activations, with the scratch that quantised weights need.
struct Wide {
  MatmulLt* lt;
  Tensor narrow;  ///< 16-bit scratch for activations: only its size counts here
  UnpackAhead* unpacked;
  int64_t epoch;  ///< of unpacked
  cudaStream_t stream;

  /// Rows that are no multiple of 16 bytes go by matvec: here they would take slow algorithms, and no model has them.
  Way way(int64_t m, const Tensor& w) const {
    const int64_t k = w.cols();
    const bool can = lt && k % 8 == 0 && m * k <= narrow.n_elements();
    if (is_plain(w.dtype)) return can && m > kMatvecRows ? Way::wide : Way::matvec;
    if (!mma_takes(w) || m <= kMatvecMost) return Way::matvec;
    return can && m > kFewMost && block_rows(k) > 0 ? Way::wide : Way::few;
  }
  bool takes(int64_t m, const Tensor& w) const { return way(m, w) == Way::wide; }
  /// Rows of a quantised weight that are unpacked at a time: multiples of the products' tiles.
  int64_t block_rows(int64_t k) const {
    const int64_t rows = unpacked->n_elements() / k;
    return rows >= 128 ? rows / 128 * 128 : rows / kTileRows * kTileRows;
  }

  /// out (+)= x * w^T; x is of narrow_type(w). Without bias.
  void product(const Tensor& x, const Tensor& w, const Tensor& out, bool accumulate) const {
    const int64_t n = w.rows(), k = w.cols();
    const float beta = accumulate ? 1 : 0;
    if (is_plain(w.dtype)) {
      const int64_t size = element_bytes(w.dtype);
      const int64_t stride = w.layout == kRowMajor ? row_major_stride(size, k) / size : k;
      lt->matmul(x, k, w, stride, out, n, beta, stream);
      return;
    }
    const int64_t most = block_rows(k);
    for (int64_t row = 0; row < n; row += most) {
      const int64_t rows = std::min(most, n - row);
      const Tensor part = unpacked->unpack(w, row, rows, epoch, stream);
      const Tensor columns(out.as<char>() + row * element_bytes(out.dtype), out.dtype, {x.rows(), rows});
      lt->matmul(x, k, part, k, columns, n, beta, stream);
      unpacked->release(stream);
    }
  }
  /// Whether product_merged() takes quantised matrices of `rows` rows in all.
  bool takes_merged(int64_t m, int64_t rows, int64_t k, std::initializer_list<const Tensor*> matrices) const {
    bool takes = rows * k <= unpacked->n_elements() && m * rows * 2 <= narrow.n_elements();
    for (const Tensor* w : matrices) takes = takes && !is_plain(w->dtype);
    return takes;
  }
  /// out = x * [w; w; ...]^T
  void product_merged(const Tensor& x, std::initializer_list<const Tensor*> matrices, const Tensor& out) const {
    const Tensor all = unpacked->unpack(matrices, epoch, stream);
    lt->matmul(x, all.cols(), all, all.cols(), out, out.cols(), 0, stream);
    unpacked->release(stream);
  }
  /// The same as product() for f32 results with an optional bias.
  void product(const MatmulArgs& a, bool accumulate = false) const {
    product(a.x, a.w, a.out, accumulate);
    if (a.bias) add_bias(a.out, a.bias, stream);
  }
};

Tensor flat(const Tensor& t) {
  return memory_as(t, t.dtype, t.rows(), t.n_elements() / std::max<int64_t>(t.rows(), 1));
}

void refuse_what_has_no_kernel(const Needs& needs) {
  for (const DType dtype : {needs.k_type, needs.v_type}) {
    if (!is_plain(dtype) && dtype != DType::Q8_0)
      throw Error(ErrorKind::usage, "KV cache", "unsupported type", format_name(dtype), "f32, f16, bf16, q8_0");
    if (needs.head_dim > 0 && row_bytes(dtype, needs.head_dim) < 0) {
      throw Error(ErrorKind::usage, "KV cache", "head size is no multiple of the block of " + format_name(dtype),
                  std::to_string(needs.head_dim), "multiples of 32");
    }
  }
  const std::string reason = refusal(needs);
  if (!reason.empty()) throw Error(ErrorKind::bad_file, reason);
}

}  // namespace

void CudaBackend::prepare_ops(const Needs& needs) {
  refuse_what_has_no_kernel(needs);
  const int64_t rows = needs.max_tokens, width = needs.max_width;
  if (!lt_ && rows > kMatvecRows) lt_ = MatmulLt::open(why_no_lt_);
  if (rows > kMatvecMost && width > 0) {
    const auto bytes = static_cast<size_t>(rows * width) * sizeof(uint16_t);
    narrow_a_ = Tensor(scratch_block(bytes), DType::BF16, {rows, width});
    narrow_b_ = Tensor(scratch_block(bytes), DType::BF16, {rows, width});
    if (lt_) unpacked_.place(scratch_block(kUnpackedBytes), kUnpackedBytes);
    mma_scratch_.partial = reinterpret_cast<float*>(scratch_block(kPartialBytes));
    mma_scratch_.partial_floats = static_cast<int64_t>(kPartialBytes / sizeof(float));
    mma_scratch_.arrived = reinterpret_cast<int32_t*>(scratch_block(kMaxArrivals * sizeof(int32_t)));
    mma_scratch_.max_arrivals = kMaxArrivals;
  }
  if (needs.head_dim > 0) {
    const auto n_units = static_cast<size_t>(kAttentionUnitsPerSm * device_.n_sms);
    const auto parts = static_cast<size_t>(std::max(needs.max_seqs, rows) * std::max<int64_t>(needs.n_heads, 1));
    const size_t unit_floats = 8 * static_cast<size_t>(needs.head_dim + 2);
    attention_scratch_.partial = reinterpret_cast<float*>(scratch_block(n_units * unit_floats * sizeof(float)));
    attention_scratch_.arrived = reinterpret_cast<int32_t*>(scratch_block(parts * sizeof(int32_t)));
    attention_scratch_.max_units = static_cast<int64_t>(n_units);
  }
}

// ---- products ------------------------------------------------------------------------------------------------------

void CudaBackend::product(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out, bool accumulate) {
  const int64_t m = x.rows();
  const Wide wide{lt_.get(), narrow_a_, &unpacked_, counters_.runs, stream_.get()};
  const Way way = wide.way(m, w);
  ++counters_.launches;
  if (way == Way::few) {
    const MmaOutput output = accumulate ? MmaOutput::add : MmaOutput::store;
    return matmul_mma({x, {&w}, {&bias}, output, {}, out.data, out.cols()}, mma_scratch_, stream_.get());
  }
  if (way == Way::matvec) {
    for (int64_t row = 0; row < m; row += kMatvecRows) {
      const int64_t rows = std::min(kMatvecRows, m - row);
      matvec({row_range(x, row, rows), w, bias, row_range(out, row, rows)}, accumulate, stream_.get());
    }
    return;
  }
  const DType type = narrow_type(w.dtype);
  Tensor operand = x;
  if (type != DType::F32) {
    operand = memory_as(narrow_a_, type, m, w.cols());
    convert(x, operand, stream_.get());
  }
  wide.product({operand, w, bias, out}, accumulate);
}

bool CudaBackend::few(int64_t m, std::initializer_list<const Tensor*> weights) {
  const Wide wide{lt_.get(), narrow_a_, &unpacked_, counters_.runs, stream_.get()};
  bool all = true;
  for (const Tensor* w : weights) all = all && wide.way(m, *w) == Way::few && m * w->cols() <= narrow_a_.n_elements();
  return all;
}

// ---- primitives ----------------------------------------------------------------------------------------------------

void CudaBackend::embed(const EmbedArgs& a) {
  if (recorder_) return recorder_->embed(a);
  ++counters_.launches;
  cuda::embed(a, stream_.get());
}

void CudaBackend::norm(const NormArgs& a) {
  if (recorder_) return recorder_->unsupported("norm");
  ++counters_.launches;
  cuda::norm(a, stream_.get());
}

void CudaBackend::matmul(const MatmulArgs& a) {
  if (recorder_) return recorder_->unsupported("matmul");
  product(a.x, a.w, a.bias, a.out, false);
}

void CudaBackend::activate(const ActivateArgs& a) {
  if (recorder_) return recorder_->unsupported("activate");
  ++counters_.launches;
  cuda::activate(a, stream_.get());
}

void CudaBackend::add(const AddArgs& a) {
  if (recorder_) return recorder_->unsupported("add");
  ++counters_.launches;
  cuda::add(a, stream_.get());
}

void CudaBackend::rope_store(const RopeStoreArgs& a) {
  if (recorder_) return recorder_->unsupported("rope_store");
  ++counters_.launches;
  cuda::rope_store(a, stream_.get());
}

void CudaBackend::attention(const AttentionArgs& a) {
  if (recorder_) return recorder_->attention(a);
  ++counters_.launches;
  const bool decoding = a.q.rows() == a.kv_len.rows() && attention_scratch_.partial;
  if (decoding) {
    attention_decode(a, attention_scratch_, device_.n_sms, stream_.get());
  } else {
    attention_prefill(a, stream_.get());
  }
}

void CudaBackend::gather(const Tensor& x, const Tensor& rows, const Tensor& out) {
  if (recorder_) return recorder_->gather(x, rows, out);
  ++counters_.launches;
  cuda::gather(x, rows, out, stream_.get());
}

void CudaBackend::scale_softcap(const Tensor& x, float scale, float softcap) {
  if (recorder_) return recorder_->unsupported("scale_softcap");
  if (scale == 1 && softcap <= 0) return;
  ++counters_.launches;
  cuda::scale_softcap(x, scale, softcap, stream_.get());
}

// ---- stages --------------------------------------------------------------------------------------------------------

void CudaBackend::attn_in(const AttnInArgs& a) {
  if (recorder_) return recorder_->attn_in(a);
  const Wide wide{lt_.get(), narrow_a_, &unpacked_, counters_.runs, stream_.get()};
  const int64_t m = a.x.rows();
  if (few(m, {&a.wq, &a.wk, &a.wv})) return attn_in_few(a);
  const DType type = narrow_type(a.wq.dtype);
  for (const Tensor* w : {&a.wq, &a.wk, &a.wv}) {
    if (!wide.takes(m, *w) || narrow_type(w->dtype) != type) return Backend::attn_in(a);
  }
  const Tensor normed = type == DType::F32 ? a.normed : memory_as(narrow_a_, type, m, a.x.cols());
  norm({a.x, a.norm, a.eps, normed});
  const RopeStoreArgs& r = a.rope_store;
  const int64_t rows = a.wq.rows() + a.wk.rows() + a.wv.rows();
  if (wide.takes_merged(m, rows, a.x.cols(), {&a.wq, &a.wk, &a.wv})) {
    const Tensor merged = memory_as(narrow_b_, DType::F32, m, rows);
    wide.product_merged(normed, {&a.wq, &a.wk, &a.wv}, merged);
    counters_.launches += 2;
    return rope_store_merged(r, merged, a.bq, a.bk, a.bv, stream_.get());
  }
  wide.product({normed, a.wq, a.bq, flat(r.q)});
  wide.product({normed, a.wk, a.bk, flat(r.k)});
  wide.product({normed, a.wv, a.bv, flat(r.v)});
  counters_.launches += 3;
  rope_store(r);
}

void CudaBackend::attn_out(const AttnOutArgs& a) {
  if (recorder_) return recorder_->attn_out(a);
  if (a.add.norm || a.add.scale != 1) return Backend::attn_out(a);
  product(a.attn, a.wo, a.bo, a.add.x, true);
}

void CudaBackend::ffn(const FfnArgs& a) {
  if (recorder_) return recorder_->ffn(a);
  const Wide wide{lt_.get(), narrow_a_, &unpacked_, counters_.runs, stream_.get()};
  const FfnSteps s = steps(a);
  const int64_t m = a.add.x.rows();
  const DType type = narrow_type(a.w_gate.dtype);
  bool fused = true;
  for (const Tensor* w : {&a.w_gate, &a.w_up, &a.w_down}) {
    fused = fused && wide.takes(m, *w) && narrow_type(w->dtype) == type;
  }
  const bool direct = !a.add.norm && a.add.scale == 1;  // the last product adds to the residual stream itself
  const Tensor& branch = direct ? a.add.x : a.add.branch;
  if (few(m, {&a.w_gate, &a.w_up, &a.w_down})) {
    ++counters_.launches;
    matmul_mma({gated_few(a),
                {&a.w_down},
                {&a.b_down},
                direct ? MmaOutput::add : MmaOutput::store,
                {},
                branch.data,
                branch.cols()},
               mma_scratch_, stream_.get());
  } else if (!fused) {
    norm(s.norm);
    matmul(s.gate);
    matmul(s.up);
    activate(s.activate);
    product(a.gate, a.w_down, a.b_down, branch, direct);
  } else {
    const int64_t dim = a.w_gate.cols(), ffn_dim = a.w_gate.rows();
    const bool narrow = type != DType::F32;
    const Tensor normed = narrow ? memory_as(narrow_a_, type, m, dim) : a.normed;
    norm({a.add.x, a.norm, a.eps, normed});
    // bf16 holds what f32 holds, so gate and up are kept in it; f16 would overflow in some models.
    const bool half = type == DType::BF16 && !a.b_gate && !a.b_up;
    const DType kept = half ? DType::BF16 : DType::F32;
    const Tensor gate = memory_as(a.gate, kept, m, ffn_dim), up = memory_as(a.up, kept, m, ffn_dim);
    wide.product({normed, a.w_gate, a.b_gate, gate});
    wide.product({normed, a.w_up, a.b_up, up});
    const Tensor activated = kept == type ? gate : memory_as(narrow_b_, type, m, ffn_dim);
    half ? activate_bf16({gate, up, a.activation, gate}, stream_.get()) : activate({gate, up, a.activation, activated});
    wide.product({activated, a.w_down, a.b_down, branch}, direct);
    counters_.launches += half ? 4 : 3;
  }
  if (!direct) add(s.add);
}

void CudaBackend::logits(const LogitsArgs& a) {
  if (recorder_) return recorder_->logits(a);
  const Wide wide{lt_.get(), narrow_a_, &unpacked_, counters_.runs, stream_.get()};
  const int64_t m = a.rows.rows();
  const DType type = narrow_type(a.head.dtype);
  if (m == 0) return;
  if (few(m, {&a.head})) {
    gather(a.x, a.rows, a.normed);
    const Tensor normed = norm_bf16(a.normed, a.norm, a.eps);
    ++counters_.launches;
    matmul_mma({normed, {&a.head}, {&a.bias}, MmaOutput::store, {}, a.out.data, a.out.cols()}, mma_scratch_,
               stream_.get());
    return scale_softcap(a.out, a.scale, a.softcap);
  }
  if (!wide.takes(m, a.head) || type == DType::F32) return Backend::logits(a);
  gather(a.x, a.rows, a.normed);
  const Tensor normed = memory_as(narrow_a_, type, m, a.x.cols());
  norm({a.normed, a.norm, a.eps, normed});
  wide.product({normed, a.head, a.bias, a.out});
  ++counters_.launches;
  scale_softcap(a.out, a.scale, a.softcap);
}

}  // namespace infer::cuda
