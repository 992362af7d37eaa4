// The CUDA backend as it is used: every op is launched under the eyes of the Watch, which knows what runs where when
// something fails. Primitives that a stage is composed of pass through here too, since they are virtual.
#pragma once

#include "kernels/cuda/cuda_backend.h"

namespace infer::cuda {

class WatchedBackend final : public CudaBackend {
 public:
  using CudaBackend::CudaBackend;

  void embed(const EmbedArgs& a) override {
    op("embed", [&] { CudaBackend::embed(a); });
  }
  void norm(const NormArgs& a) override {
    op("norm", [&] { CudaBackend::norm(a); });
  }
  void matmul(const MatmulArgs& a) override {
    op("matmul", [&] { CudaBackend::matmul(a); });
  }
  void activate(const ActivateArgs& a) override {
    op("activate", [&] { CudaBackend::activate(a); });
  }
  void add(const AddArgs& a) override {
    op("add", [&] { CudaBackend::add(a); });
  }
  void rope_store(const RopeStoreArgs& a) override {
    op("rope_store", [&] { CudaBackend::rope_store(a); });
  }
  void attention(const AttentionArgs& a) override {
    op(
        "attention", [&] { CudaBackend::attention(a); }, true);
  }
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override {
    op("gather", [&] { CudaBackend::gather(x, rows, out); });
  }
  void scale_softcap(const Tensor& x, float scale, float softcap) override {
    op("scale_softcap", [&] { CudaBackend::scale_softcap(x, scale, softcap); });
  }
  void route(const RouteArgs& a) override {
    op("route", [&] { CudaBackend::route(a); });
  }
  void expert_matmul(const ExpertMatmulArgs& a) override {
    op("expert_matmul", [&] { CudaBackend::expert_matmul(a); });
  }
  void combine(const CombineArgs& a) override {
    op("combine", [&] { CudaBackend::combine(a); });
  }
  void moe_ffn(const MoeFfnArgs& a) override {
    op("moe_ffn", [&] { CudaBackend::moe_ffn(a); });
  }
  void sample(const SampleArgs& a) override {
    op("sample", [&] { CudaBackend::sample(a); });
  }
  void attn_in(const AttnInArgs& a) override {
    op("attn_in", [&] { CudaBackend::attn_in(a); });
  }
  void attn_out(const AttnOutArgs& a) override {
    op("attn_out", [&] { CudaBackend::attn_out(a); });
  }
  void ffn(const FfnArgs& a) override {
    op("ffn", [&] { CudaBackend::ffn(a); });
  }
  void logits(const LogitsArgs& a) override {
    op("logits", [&] { CudaBackend::logits(a); });
  }
  void run(uint64_t key, const std::function<void()>& fn) override {
    watch_.begin_step();
    watch_.guarded([&] { CudaBackend::run(key, fn); });
  }
  void run_prefix(uint64_t key, int64_t n_ops, const std::function<void()>& fn) override {
    watch_.begin_step();
    watch_.guarded([&] { CudaBackend::run_prefix(key, n_ops, fn); });
  }
  uint64_t mark() override {
    uint64_t mark = 0;
    watch_.guarded([&] { mark = CudaBackend::mark(); });
    return mark;
  }

 private:
  template <class Fn>
  void op(const char* name, Fn fn, bool takes_heads = false) {
    if (recorder_) return fn();  // noted down, not launched
    watch_.during(name, stream_.get(), [&] {
      if (!takes_heads) store_heads();
      fn();
    });
  }
};

}  // namespace infer::cuda
