// The oracle as a Backend: host memory, no scratch, no packing (weights are used where the file has them), no stage
// overridden, so that a stage on `ref` is its definition.
#include "kernels/ref/ref_backend.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels/kv_format.h"
#include "kernels/ref/ref.h"
#include "quant/formats.h"

namespace infer {
namespace {

constexpr size_t kAlignment = 64;

class RefBackend final : public Backend {
 public:
  explicit RefBackend(const BackendOptions& options) : act_(options.act) {}

  const char* name() const override { return "ref"; }
  std::string describe() const override { return "ref (float32, 1 thread)"; }

  void check_activations(const Needs&) const override {
    if (!act_.empty() && act_ != "auto")
      throw Error(ErrorKind::usage, "act", "the reference computes in float32", act_, "auto");
  }

  void prepare(const Needs& needs) override {
    check_activations(needs);
    for (DType dtype : needs.all_matrix_formats()) require_decodable(dtype);
    for (DType dtype : needs.embedding_formats) require_decodable(dtype);
    for (DType dtype : {needs.k_type, needs.v_type}) {
      if (!is_kv_format(dtype))
        throw Error(ErrorKind::usage, "KV cache", "unsupported type", format_name(dtype), kKvFormatNames);
      if (needs.head_dim > 0 && row_bytes(dtype, needs.head_dim) < 0) {
        throw Error(ErrorKind::usage, "KV cache", "head size is no multiple of the block of " + format_name(dtype),
                    std::to_string(needs.head_dim), "multiples of 32");
      }
    }
  }

  Buffer allocate(size_t bytes) override {
    // calloc leaves untouched pages of large blocks to the system, which is what KV caches want.
    void* block = bytes <= SIZE_MAX - kAlignment ? std::calloc(bytes + kAlignment, 1) : nullptr;
    if (!block) throw Error(ErrorKind::does_not_fit, "memory", "allocation failed", std::to_string(bytes) + " bytes");
    const size_t skip = kAlignment - reinterpret_cast<uintptr_t>(block) % kAlignment;
    ++stats_.allocations;
    *live_ += static_cast<int64_t>(bytes);
    const auto live = live_;
    return Buffer(static_cast<char*>(block) + skip, [block, bytes, live](void*) {
      std::free(block);
      *live -= static_cast<int64_t>(bytes);
    });
  }
  void upload(void* dst, const void* src, size_t bytes) override {
    if (bytes > 0) std::memcpy(dst, src, bytes);
  }
  void download(void* dst, const void* src, size_t bytes) override {
    if (bytes > 0) std::memcpy(dst, src, bytes);
  }

  size_t packed_bytes(const Tensor& host, WeightRole role) const override {
    return role == WeightRole::vector ? static_cast<size_t>(host.n_elements()) * sizeof(float) : 0;
  }
  Tensor pack(const Tensor& host, WeightRole role, void* dst) const override {
    if (role != WeightRole::vector) return host;
    const bool decoded = decode_row(host.dtype, host.data, static_cast<float*>(dst), host.n_elements());
    ref::require(decoded, "pack", "vector of a format without decoder");
    Tensor out = host;
    out.data = dst;
    out.dtype = DType::F32;
    return out;
  }

  void embed(const EmbedArgs& args) override { count(), ref::embed(args); }
  void norm(const NormArgs& args) override { count(), ref::norm(args); }
  void matmul(const MatmulArgs& args) override { count(), ref::matmul(args); }
  void activate(const ActivateArgs& args) override { count(), ref::activate(args); }
  void add(const AddArgs& args) override { count(), ref::add(args); }
  void rope_store(const RopeStoreArgs& args) override { count(), ref::rope_store(args); }
  void attention(const AttentionArgs& args) override { count(), ref::attention(args); }
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override { count(), ref::gather(x, rows, out); }
  void scale_softcap(const Tensor& x, float scale, float softcap) override {
    count(), ref::scale_softcap(x, scale, softcap);
  }

  void route(const RouteArgs& args) override { count(), ref::route(args); }
  void expert_matmul(const ExpertMatmulArgs& args) override { count(), ref::expert_matmul(args); }
  void combine(const CombineArgs& args) override { count(), ref::combine(args); }

  void run(uint64_t, const std::function<void()>& fn) override {
    ++stats_.runs;
    fn();
  }

  BackendStats stats() const override {
    BackendStats out = stats_;
    out.bytes = *live_;
    return out;
  }

 private:
  static void require_decodable(DType dtype) {
    if (!gpu_decodable(dtype))
      throw Error(ErrorKind::bad_file, "weights", "no kernel for the format", format_name(dtype));
  }
  void count() { ++stats_.stages; }

  std::string act_;
  BackendStats stats_;
  /// Shared with the buffers, which may outlive the backend and be freed by any thread.
  std::shared_ptr<std::atomic<int64_t>> live_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace

std::unique_ptr<Backend> make_ref_backend(const BackendOptions& options) {
  return std::make_unique<RefBackend>(options);
}

}  // namespace infer
