// Primitives of the graph and eager ways: which kernel does what for how many rows. Several ways lead through a
// product, see Way in wide.h. Where bits may not depend on the step (Needs::deterministic) all products go one way and
// attention goes by parts; then no stage finds a way of its own and each is computed as its primitives, one by one.
// While run() records, everything goes to the recorder instead.
#include <algorithm>
#include <utility>

#include "kernels/cuda/attention_copy.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul_plain.h"
#include "kernels/cuda/packed.h"
#include "kernels/cuda/sizes.h"
#include "kernels/kv_format.h"
#include "quant/formats.h"

namespace infer::cuda {
namespace {

constexpr size_t kPartialBytes = size_t{32} << 20;  ///< sums of parts of few rows' products
constexpr int kMaxArrivals = 4096;
constexpr size_t kUnpackedBytes = (size_t{128} << 20) * UnpackAhead::kHalves;
constexpr size_t kPartsBytes = size_t{64} << 20;  ///< of attention by parts: more only where one token wants more
constexpr int kAttentionUnitsPerSm = 16;          ///< partial results of split sequences: twice what splitting asks for

/// `rows` rows of a row-major matrix from row `begin` on.
Tensor row_range(const Tensor& t, int64_t begin, int64_t rows) {
  return Tensor(t.as<char>() + begin * t.cols() * element_bytes(t.dtype), t.dtype, {rows, t.cols()});
}

void refuse_what_has_no_kernel(const Needs& needs) {
  for (const DType dtype : {needs.k_type, needs.v_type}) {
    if (!is_kv_format(dtype))
      throw Error(ErrorKind::usage, "KV cache", "unsupported type", format_name(dtype), kKvFormatNames);
    if (needs.head_dim > 0 && row_bytes(dtype, needs.head_dim) < 0) {
      throw Error(ErrorKind::usage, "KV cache", "head size is no multiple of the block of " + format_name(dtype),
                  std::to_string(needs.head_dim), "multiples of 32");
    }
  }
  const std::string reason = refusal(needs);
  if (!reason.empty()) throw Error(ErrorKind::bad_file, reason);
}

}  // namespace

void CudaBackend::place_mma_scratch() {
  mma_scratch_.partial = reinterpret_cast<float*>(scratch_block(kPartialBytes));
  mma_scratch_.partial_floats = static_cast<int64_t>(kPartialBytes / sizeof(float));
  mma_scratch_.arrived = reinterpret_cast<int32_t*>(scratch_block(kMaxArrivals * sizeof(int32_t)));
  mma_scratch_.max_arrivals = kMaxArrivals;
}

void CudaBackend::prepare_fixed(const Needs& needs) {
  place_mma_scratch();
  if (needs.max_width > 0) {  // of plain weights a whole step's activations, of others an operand's at a time
    const int64_t numbers = std::max<int64_t>(kOperandMaxTokens, needs.max_tokens) * needs.max_width;
    narrow_a_ = Tensor(scratch_block(static_cast<size_t>(numbers) * sizeof(uint16_t)), DType::BF16, {1, numbers});
  }
  const int64_t pages = (needs.max_context + kPageTokens - 1) / kPageTokens;
  const auto of_token = static_cast<size_t>(parts_of_pages(pages, kPageTokens) * needs.n_heads * (needs.head_dim + 2));
  const size_t bytes = std::max(kPartsBytes, of_token * sizeof(float));
  attention_scratch_.partial = reinterpret_cast<float*>(scratch_block(bytes));
  attention_scratch_.partial_floats = static_cast<int64_t>(bytes / sizeof(float));
}

void CudaBackend::prepare_ops(const Needs& needs) {
  refuse_what_has_no_kernel(needs);
  has_wgmma_ = has_wgmma(device_.major, device_.minor);
  if (has_wgmma_ && !wgmma_limits_.n_sms) wgmma_limits_ = wgmma_limits(device_.n_sms);
  if (needs.deterministic) return prepare_fixed(needs);
  const int64_t rows = needs.max_tokens, width = needs.max_width;
  const bool decodes = all_decode_packed(needs.matrix_formats, act_);
  if (!lt_ && (rows > kMatvecRows || !decodes)) lt_ = MatmulLt::open(why_no_lt_);
  if (!lt_ && !decodes)
    throw Error(ErrorKind::run, "act", "no kernel for these activations without cuBLASLt", why_no_lt_);
  crossovers_ = CrossoverTable(told_crossovers_, device_.name, has_wgmma_);
  if ((lt_ || rows >= crossovers_.few_least(needs.matrix_formats)) && width > 0) {
    const auto bytes = static_cast<size_t>(rows * width) * sizeof(uint16_t);
    narrow_a_ = Tensor(scratch_block(bytes), DType::BF16, {rows, width});
    narrow_b_ = Tensor(scratch_block(bytes), DType::BF16, {rows, width});
    if (lt_) unpacked_.place(scratch_block(kUnpackedBytes), kUnpackedBytes);
    place_mma_scratch();
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

Wide CudaBackend::wide() { return wide(act_); }

Wide CudaBackend::wide(Act act) {
  return {lt_.get(),  narrow_a_,   &unpacked_, counters_.runs + packs_, stream_.get(), act, needs_.deterministic,
          has_wgmma_, &crossovers_};
}

void CudaBackend::product(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out, bool accumulate) {
  product(wide(), x, w, bias, out, accumulate);
}

void CudaBackend::product(const Wide& wide, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                          bool accumulate) {
  const int64_t m = x.rows();
  const Way way = wide.way(m, w);
  ++counters_.launches;
  if (way == Way::fixed) return product_fixed({x, w, bias, out}, accumulate);
  if (way == Way::few) {
    const FewWay few = few_way(m, {&w});
    const MmaOutput output = accumulate ? MmaOutput::add : MmaOutput::store;
    Tensor operand = x;
    --counters_.launches;
    if (few == FewWay::plain) {
      operand = narrowed(x, w.dtype);
    } else if (few == FewWay::wgmma) {
      operand = memory_as(narrow_a_, DType::BF16, m, w.cols());
      if (!copied(x, PassedForm::operand)) {
        forget_copies();
        ++counters_.launches;
        arrange_operand(x, operand.data, stream_.get());
      }
    }
    MmaArgs args{operand, {&w}, {&bias}, output, {}, out.data, out.cols()};
    if (few == FewWay::int8 && copied(x, PassedForm::codes)) args.x.data = narrow_a_.data, args.int8_scales = 1;
    return product_few(few, args);
  }
  if (way == Way::matvec) {
    for (int64_t row = 0; row < m; row += kMatvecRows) {
      const int64_t rows = std::min(kMatvecRows, m - row);
      matvec({row_range(x, row, rows), w, bias, row_range(out, row, rows)}, accumulate, stream_.get());
    }
    return;
  }
  const DType type = wide.type(w);
  wide.product({type == DType::F32 ? x : narrowed(x, type), w, bias, out}, accumulate);
}

Tensor CudaBackend::narrowed(const Tensor& x, DType type) {
  const Tensor operand = memory_as(narrow_a_, type, x.rows(), x.cols());
  if (type != DType::BF16 || !copied(x, PassedForm::rows)) {
    forget_copies();
    convert(x, operand, stream_.get());
  }
  return operand;
}

/// Which kernel depends on the weight and the GPU; only what is wider than a model said has no room for operands.
void CudaBackend::product_fixed(const MatmulArgs& a, bool accumulate) {
  if (!mma_takes(a.w)) return matmul_plain(a, accumulate, narrow_a_, stream_.get());
  const int64_t m = a.x.rows(), n = a.out.cols(), k = a.x.cols();
  const bool arranged = has_wgmma_ && wgmma_takes(1, a.w) && k <= needs_.max_width;
  MmaArgs args{a.x, {&a.w}, {&a.bias}, accumulate ? MmaOutput::add : MmaOutput::store, {}, a.out.data, n, true};
  if (!arranged) return matmul_mma(args, mma_scratch_, stream_.get());
  for (int64_t row = 0; row < m; row += kOperandMaxTokens) {
    const int64_t rows = std::min<int64_t>(kOperandMaxTokens, m - row);
    args.x = memory_as(narrow_a_, DType::BF16, rows, k);
    args.out = row_range(a.out, row, rows).data;
    arrange_operand(row_range(a.x, row, rows), args.x.data, stream_.get());
    matmul_wgmma(args, wgmma_limits_, stream_.get());
    counters_.launches += row == 0 ? 1 : 2;
  }
}

bool CudaBackend::few(int64_t m, std::initializer_list<const Tensor*> weights) {
  const Wide wide = this->wide();
  const Tensor& first = **weights.begin();
  bool all = true;
  for (const Tensor* w : weights) {
    const bool alike = w->layout == first.layout && (w->layout == kTiles || w->dtype == first.dtype);
    all = all && alike && wide.way(m, *w) == Way::few && m * w->cols() <= narrow_a_.n_elements();
  }
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
  RopeStoreArgs rest = a;
  const auto norm_whole = [&](const Tensor& x, Tensor& weight) {  // all heads of a token as one row
    if (!a.spans_heads(weight)) return;
    const Tensor row = memory_as(x, DType::F32, x.rows(), weight.n_elements());
    norm({row, weight, a.eps, row});
    weight = Tensor();
  };
  norm_whole(a.q, rest.q_norm), norm_whole(a.k, rest.k_norm);
  cuda::rope_store(rest, stream_.get());
}

void CudaBackend::place_attention_copy(const AttentionArgs& a) {
  forget_copies(), attention_scratch_.copy = nullptr;
  const int64_t m = a.q.rows();
  if (!few_by_format(act_) || m < kWgmmaLeast) return;
  const auto form = attention_copy_form(
      {m, a.q.dims[1], a.q.dims[2], narrow_a_.n_elements(), has_wgmma_, lt_ != nullptr}, needs_.matrix_formats);
  if (!form) return;
  attention_copy_ = {a.out.data, *form, operand_tokens(m)};
  attention_scratch_.copy = narrow_a_.data;
  attention_scratch_.copy_form = *form, attention_scratch_.copy_tokens = attention_copy_.tokens;
}

bool CudaBackend::copied(const Tensor& x, PassedForm form) const {
  return attention_copy_.of == x.data && attention_copy_.form == form &&
         (form != PassedForm::operand || attention_copy_.tokens == operand_tokens(x.rows()));
}

void CudaBackend::attention(const AttentionArgs& a) {
  if (recorder_) return recorder_->attention(a);
  const bool decoding = !needs_.deterministic && a.q.rows() == a.kv_len.rows() && attention_scratch_.partial;
  // What attn_in has left is this attention's own, in a way that takes it along, or is done as before.
  if (heads_ && (!decoding || heads_->args.q.data != a.q.data || heads_->args.k_cache.data != a.k_cache.data))
    store_heads();
  const std::optional<MergedHeads> heads = std::exchange(heads_, std::nullopt);
  ++counters_.launches;
  if (needs_.deterministic)
    return attention_in_parts(a, attention_scratch_.partial, attention_scratch_.partial_floats, stream_.get());
  if (decoding) {
    place_attention_copy(a);
    attention_decode(a, heads ? &*heads : nullptr, attention_scratch_, device_.n_sms, stream_.get());
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

}  // namespace infer::cuda
