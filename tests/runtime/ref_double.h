// A backend that computes as `ref` does, for tests that watch or replace some of its calls.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/ref/ref_backend.h"
#include "kernels/sample.h"

namespace infer::test {

class RefDouble : public Backend {
 public:
  const char* name() const override { return "double"; }
  std::string describe() const override { return "double"; }
  void check_activations(const Needs& needs) const override { ref_->check_activations(needs); }
  void prepare(const Needs& needs) override { ref_->prepare(needs); }
  Buffer allocate(size_t bytes) override { return ref_->allocate(bytes); }
  void upload(void* dst, const void* src, size_t bytes) override { ref_->upload(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { ref_->download(dst, src, bytes); }
  size_t packed_bytes(const Tensor& host, WeightRole role) const override { return ref_->packed_bytes(host, role); }
  Tensor pack(const Tensor& host, WeightRole role, void* dst) const override { return ref_->pack(host, role, dst); }
  void embed(const EmbedArgs& a) override { ref_->embed(a); }
  void norm(const NormArgs& a) override { ref_->norm(a); }
  void matmul(const MatmulArgs& a) override { ref_->matmul(a); }
  void activate(const ActivateArgs& a) override { ref_->activate(a); }
  void add(const AddArgs& a) override { ref_->add(a); }
  void rope_store(const RopeStoreArgs& a) override { ref_->rope_store(a); }
  void attention(const AttentionArgs& a) override { ref_->attention(a); }
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override { ref_->gather(x, rows, out); }
  void scale_softcap(const Tensor& x, float scale, float cap) override { ref_->scale_softcap(x, scale, cap); }
  void attn_in(const AttnInArgs& a) override { ref_->attn_in(a); }
  void attn_out(const AttnOutArgs& a) override { ref_->attn_out(a); }
  void ffn(const FfnArgs& a) override { ref_->ffn(a); }
  void logits(const LogitsArgs& a) override { ref_->logits(a); }
  void run(uint64_t key, const std::function<void()>& fn) override { ref_->run(key, fn); }
  BackendStats stats() const override { return ref_->stats(); }
  bool samples(const SampleRow& row) const override { return sample_row_supported(row); }

 private:
  std::unique_ptr<Backend> ref_ = make_ref_backend({});
};

}  // namespace infer::test
