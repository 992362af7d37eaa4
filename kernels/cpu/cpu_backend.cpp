// The CPU backend's memory, what it refuses, and the primitives; the fused stages are in cpu_stages.cpp.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_stages.h"
#include "kernels/cpu/memory.h"
#include "kernels/kv_format.h"
#include "quant/formats.h"

namespace infer::cpu {
namespace {

/// Open sums of long decoding that we are willing to hold; what does not fit runs uncut, with the same result.
constexpr int64_t kMostPartialFloats = int64_t{16} << 20;

void refuse(ErrorKind kind, const char* where, const char* message, const std::string& found,
            const std::string& allowed = {}) {
  throw Error(kind, where, message, found, allowed);
}

const char* form_name(ActivationForm form) { return form == ActivationForm::f32 ? "f32" : "int8"; }

void require_id(bool ok, const char* op, int64_t found, int64_t limit) {
  if (ok) return;
  refuse(ErrorKind::run, op, "index out of range", std::to_string(found), "0 to " + std::to_string(limit - 1));
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : isa_(options.isa.empty() ? best_isa() : parse_isa(options.isa)),
      fusion_(fused_stages(options)),
      act_(options.act),
      pool_(options.n_threads > 0 ? options.n_threads : default_threads()),
      pointwise_(pointwise(isa_)),
      workspace_(pool_.n_threads(), live_),
      attention_plan_(attention_table(isa_)) {}

std::string CpuBackend::describe() const {
  const char* level = isa_ == Isa::avx512 ? "avx512 vnni bf16" : to_string(isa_);
  const int n = n_threads();
  return std::string("cpu (") + level + ", " + std::to_string(n) + (n == 1 ? " thread)" : " threads)") +
         fusion_.note() + (act_.empty() || act_ == "auto" ? "" : ", activations " + act_);
}

/// A format has one kernel here, and so one form of activations.
void CpuBackend::check_activations(const Needs& needs) const {
  if (act_.empty() || act_ == "auto") return;
  for (DType dtype : needs.all_matrix_formats()) {
    if (!matmul_supported(dtype)) continue;  // prepare() refuses it
    const char* const own = form_name(activation_form(dtype));
    if (act_ == own) continue;
    refuse(ErrorKind::usage, "act", "the cpu has no kernel for such activations", act_ + " with " + format_name(dtype),
           std::string("auto, which is ") + own + " for " + format_name(dtype));
  }
}

void CpuBackend::prepare(const Needs& needs) {
  check_activations(needs);
  WorkspaceSize size;
  for (DType dtype : needs.all_matrix_formats()) {
    if (!matmul_supported(dtype)) {
      refuse(ErrorKind::bad_file, "weights", "the cpu has no kernel for the format", format_name(dtype));
    }
    size.include_form(activation_form(dtype));
  }
  for (DType dtype : needs.embedding_formats) {
    if (!decodable(dtype)) {
      refuse(ErrorKind::bad_file, "weights", "the cpu cannot look up rows of the format", format_name(dtype));
    }
  }
  if (needs.head_dim > 0) {
    if (!attention_supports(DType::F32, needs.head_dim)) {
      refuse(ErrorKind::bad_file, "attention", "the cpu has no kernel for the head size",
             std::to_string(needs.head_dim), "even numbers from 2 to " + std::to_string(kMaxHeadDim));
    }
    for (DType dtype : {needs.k_type, needs.v_type}) {
      if (attention_supports(dtype, needs.head_dim)) continue;
      refuse(ErrorKind::usage, "KV cache", "no kernel for this type at this head size",
             format_name(dtype) + " at " + std::to_string(needs.head_dim),
             "f32, f16, bf16; q8_0 and q4_0 where the head size is a multiple of 32");
    }
  }
  for (DType dtype : needs.expert_formats) size.expert_forms[static_cast<int>(activation_form(dtype))] = true;
  size.n_tokens = std::max<int64_t>(1, needs.max_tokens);
  size.expert_rows = size.n_tokens * needs.n_active;
  size.expert_width = needs.expert_width;
  size.width = std::max<int64_t>(1, needs.max_width);
  size.head_dim = needs.head_dim;
  size.n_seqs = std::max<int64_t>(1, needs.max_seqs);
  const int64_t splits = (needs.max_context + kSplit - 1) / kSplit;
  const int64_t per_row = splits * partial_floats(needs.head_dim);
  const int64_t rows = size.n_seqs * needs.n_heads;
  if (n_threads() > 1 && splits > 1 && rows > 0) size.partial_floats = std::min(kMostPartialFloats, rows * per_row);
  ensure(size);
}

void CpuBackend::ensure(WorkspaceSize size) {
  if (!workspace_.ensure(size)) return;
  ++stats_.allocations;
  attention_plan_.reserve(workspace_.size().n_seqs, workspace_.size().partial_floats);
}

Buffer CpuBackend::allocate(size_t bytes) {
  Buffer buffer = map_memory(bytes, live_);
  ++stats_.allocations;
  return buffer;
}

void CpuBackend::upload(void* dst, const void* src, size_t bytes) {
  if (bytes > 0) std::memcpy(dst, src, bytes);
}

void CpuBackend::download(void* dst, const void* src, size_t bytes) {
  if (bytes > 0) std::memcpy(dst, src, bytes);
}

size_t CpuBackend::packed_bytes(const Tensor& host, WeightRole role) const {
  if (is_matrix(role)) {
    const int64_t n = host.n_dims == 3 ? host.dims[0] : 1;
    return static_cast<size_t>(n) * cpu::packed_bytes(host.dtype, host.dims[host.n_dims - 2], host.cols());
  }
  const bool view = role == WeightRole::embedding ||
                    (host.dtype == DType::F32 && reinterpret_cast<uintptr_t>(host.data) % alignof(float) == 0);
  return view ? 0 : static_cast<size_t>(host.n_elements()) * sizeof(float);
}

Tensor CpuBackend::pack(const Tensor& host, WeightRole role, void* dst) const {
  Tensor out = host;
  if (packed_bytes(host, role) == 0) return out;
  out.data = dst;
  if (is_matrix(role)) {
    const int64_t n = host.n_dims == 3 ? host.dims[0] : 1, rows = host.dims[host.n_dims - 2], cols = host.cols();
    const size_t from = host.n_dims == 3 ? static_cast<size_t>(tensor_bytes(host.dtype, rows, cols)) : 0;
    const size_t to = cpu::packed_bytes(host.dtype, rows, cols);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      cpu::pack(host.dtype, host.as<char>() + i * from, rows, cols, 0, tile_count(rows),
                static_cast<char*>(dst) + i * to);
    }
    const bool fine = role == WeightRole::fine_matrix && find_format(host.dtype)->block > 1;
    out.layout = fine ? kPackedFine : kPacked;
    return out;
  }
  if (!decode_row(host.dtype, host.data, static_cast<float*>(dst), host.n_elements())) {
    refuse(ErrorKind::bad_file, "weights", "no such format for a vector", format_name(host.dtype));
  }
  out.dtype = DType::F32;
  return out;
}

void CpuBackend::run(uint64_t, const std::function<void()>& fn) {
  ++stats_.runs;
  fn();
}

BackendStats CpuBackend::stats() const {
  BackendStats out = stats_;
  out.stages = pool_.n_regions();
  out.bytes = *live_;
  return out;
}

// ---- primitives ----------------------------------------------------------------------------------------------------

void CpuBackend::embed(const EmbedArgs& args) {
  const int64_t n = args.ids.rows(), dim = args.table.cols(), vocab = args.table.rows();
  const int64_t bytes = row_bytes(args.table.dtype, dim);
  const int32_t* ids = args.ids.as<int32_t>();
  for (int64_t t = 0; t < n; ++t) require_id(ids[t] >= 0 && ids[t] < vocab, "embed", ids[t], vocab);
  for_rows(n, [&](int64_t t) {
    float* out = args.out.as<float>() + t * dim;
    decode_row(args.table.dtype, args.table.as<const char>() + ids[t] * bytes, out, dim);
    if (args.scale != 1) pointwise_.scale_softcap(out, args.scale, 0, dim);
  });
}

void CpuBackend::norm(const NormArgs& args) {
  const int64_t cols = args.x.cols(), rows = args.x.n_elements() / cols;
  for_rows(rows, [&](int64_t r) {
    pointwise_.rms_norm(args.x.as<float>() + r * cols, args.weight.as<float>(), args.eps,
                        args.out.as<float>() + r * cols, cols);
  });
}

void CpuBackend::activate(const ActivateArgs& args) {
  const int64_t cols = args.gate.cols();
  for_rows(args.gate.rows(), [&](int64_t r) {
    pointwise_.activate(args.activation, args.gate.as<float>() + r * cols, args.up.as<float>() + r * cols,
                        args.out.as<float>() + r * cols, cols);
  });
}

void CpuBackend::close_branch(const AddArgs& add, int64_t token) {
  const int64_t dim = add.x.cols();
  float* branch = add.branch.as<float>() + token * dim;
  if (add.norm) pointwise_.rms_norm(branch, add.norm.as<float>(), add.eps, branch, dim);
  pointwise_.add(add.x.as<float>() + token * dim, branch, add.scale, dim);
}

void CpuBackend::add(const AddArgs& args) {
  for_rows(args.x.rows(), [&](int64_t t) { close_branch(args, t); });
}

void CpuBackend::gather(const Tensor& x, const Tensor& rows, const Tensor& out) {
  const int64_t cols = x.cols();
  const int32_t* from = rows.as<int32_t>();
  for (int64_t i = 0; i < rows.rows(); ++i) {
    require_id(from[i] >= 0 && from[i] < x.rows(), "gather", from[i], x.rows());
  }
  for_rows(rows.rows(), [&](int64_t i) {
    std::memcpy(out.as<float>() + i * cols, x.as<float>() + from[i] * cols, static_cast<size_t>(cols) * sizeof(float));
  });
}

void CpuBackend::scale_softcap(const Tensor& x, float scale, float softcap) {
  const int64_t cols = x.cols();
  for_rows(x.n_elements() / cols,
           [&](int64_t r) { pointwise_.scale_softcap(x.as<float>() + r * cols, scale, softcap, cols); });
}

/// The query heads of one KV head, and that head's rows of K and V.
void CpuBackend::rope_store_head(const RopeStoreArgs& a, int64_t token, int64_t kv_head) {
  const int64_t head_dim = a.q.dims[2], n_kv_heads = a.k.dims[1], group = a.q.dims[1] / n_kv_heads;
  const int64_t pairs = a.rope.cos_sin ? a.rope.cos_sin.dims[1] : 0;
  const float* cos_sin =
      pairs > 0 ? a.rope.cos_sin.as<float>() + a.positions.as<int32_t>()[token] * pairs * 2 : nullptr;
  const int64_t k_rotation = kv_rotation(a.k_cache.dtype, head_dim);
  auto turn = [&](float* head, const Tensor& norm) {
    if (norm && !a.spans_heads(norm)) pointwise_.rms_norm(head, norm.as<float>(), a.eps, head, head_dim);
    if (pairs > 0) pointwise_.rotate(head, cos_sin, pairs, a.rope.adjacent);
    pointwise_.hadamard(head, head_dim, k_rotation);
  };
  float* q = a.q.as<float>() + (token * n_kv_heads + kv_head) * group * head_dim;
  for (int64_t g = 0; g < group; ++g) turn(q + g * head_dim, a.q_norm);
  float* k = a.k.as<float>() + (token * n_kv_heads + kv_head) * head_dim;
  turn(k, a.k_norm);
  float* v = a.v.as<float>() + (token * n_kv_heads + kv_head) * head_dim;
  pointwise_.hadamard(v, head_dim, kv_rotation(a.v_cache.dtype, head_dim));
  const int64_t slot = a.slots.as<int32_t>()[token];
  auto store = [&](const Tensor& cache, const float* row) {
    const int64_t at = (slot / kPageTokens * n_kv_heads + kv_head) * kPageTokens + slot % kPageTokens;
    pointwise_.encode(cache.dtype, row, cache.as<char>() + at * row_bytes(cache.dtype, head_dim), head_dim);
  };
  store(a.k_cache, k);
  store(a.v_cache, v);
}

void CpuBackend::norm_heads(const RopeStoreArgs& a, int64_t token) {
  for (const auto& [heads, norm] : {std::pair(a.q, a.q_norm), {a.k, a.k_norm}}) {
    const int64_t width = heads.dims[1] * heads.dims[2];
    float* row = heads.as<float>() + token * width;
    if (a.spans_heads(norm)) pointwise_.rms_norm(row, norm.as<float>(), a.eps, row, width);
  }
}

void CpuBackend::rope_store(const RopeStoreArgs& args) {
  const int64_t n_kv_heads = args.k.dims[1];
  if (args.norms_span_heads()) for_rows(args.q.rows(), [&](int64_t t) { norm_heads(args, t); });
  for_rows(args.q.rows() * n_kv_heads, [&](int64_t i) { rope_store_head(args, i / n_kv_heads, i % n_kv_heads); });
}

void CpuBackend::attention(const AttentionArgs& args) {
  WorkspaceSize size;
  size.head_dim = args.q.dims[2];
  size.n_seqs = args.kv_len.rows();
  ensure(size);
  attention_plan_.build(args, n_threads(), workspace_.partials);
  auto unit = [&](int64_t i, int thread) { attention_plan_.run_unit(i, workspace_.thread(thread).attention); };
  auto merge = [&](int64_t i, int) { attention_plan_.run_merge(i); };
  pool_.run(ThreadPool::phase(attention_plan_.n_units(), unit), ThreadPool::phase(attention_plan_.n_merges(), merge));
}

}  // namespace infer::cpu

namespace infer {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

}  // namespace infer
