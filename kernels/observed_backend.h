// A backend whose products can be looked at: every op goes to another backend, stages run as their definition, one
// primitive after another, and before each product an observer sees its arguments. So the inputs of all products
// appear, in float32, on every backend and whatever it fuses when nobody looks. Steps run call by call and draw no
// tokens.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace infer {

/// Called before each product, in the order of the step and on its thread. The tensors lie in the backend's memory:
/// Backend::download() brings them here.
struct ProductObserver {
  std::function<void(Backend& backend, const MatmulArgs& args)> matmul;
  std::function<void(Backend& backend, const ExpertMatmulArgs& args)> expert_matmul;
};

class ObservedBackend final : public Backend {
 public:
  ObservedBackend(std::unique_ptr<Backend> backend, ProductObserver observer)
      : inner_(std::move(backend)), observer_(std::move(observer)) {}

  const char* name() const override { return inner_->name(); }
  std::string describe() const override { return inner_->describe(); }
  int n_threads() const override { return inner_->n_threads(); }
  void check_activations(const Needs& needs) const override { inner_->check_activations(needs); }
  void prepare(const Needs& needs) override { inner_->prepare(needs); }

  Buffer allocate(size_t bytes) override { return inner_->allocate(bytes); }
  void upload(void* dst, const void* src, size_t bytes) override { inner_->upload(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { inner_->download(dst, src, bytes); }
  void wait() override { inner_->wait(); }
  Buffer allocate_pinned(size_t bytes) override { return inner_->allocate_pinned(bytes); }
  uint64_t mark() override { return inner_->mark(); }
  void wait_for(uint64_t mark) override { inner_->wait_for(mark); }
  std::optional<size_t> memory_left() const override { return inner_->memory_left(); }
  size_t packed_bytes(const Tensor& host, WeightRole role) const override { return inner_->packed_bytes(host, role); }
  Tensor pack(const Tensor& host, WeightRole role, void* dst) const override { return inner_->pack(host, role, dst); }
  Tensor pack_made(const Tensor& host, WeightRole role, void* dst, const MakeRows& make) const override {
    return inner_->pack_made(host, role, dst, make);
  }
  bool packs_columns(const Tensor& host, const ColumnCodes& columns) const override {
    return inner_->packs_columns(host, columns);
  }
  Tensor pack_columns(const Tensor& host, WeightRole role, void* dst, const ColumnCodes& columns) const override {
    return inner_->pack_columns(host, role, dst, columns);
  }

  void embed(const EmbedArgs& args) override { inner_->embed(args); }
  void norm(const NormArgs& args) override { inner_->norm(args); }
  void matmul(const MatmulArgs& args) override {
    observer_.matmul(*inner_, args);
    inner_->matmul(args);
  }
  void route(const RouteArgs& args) override { inner_->route(args); }
  void expert_matmul(const ExpertMatmulArgs& args) override {
    observer_.expert_matmul(*inner_, args);
    inner_->expert_matmul(args);
  }
  void combine(const CombineArgs& args) override { inner_->combine(args); }
  void activate(const ActivateArgs& args) override { inner_->activate(args); }
  void add(const AddArgs& args) override { inner_->add(args); }
  void rope_store(const RopeStoreArgs& args) override { inner_->rope_store(args); }
  void attention(const AttentionArgs& args) override { inner_->attention(args); }
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override { inner_->gather(x, rows, out); }
  void scale_softcap(const Tensor& x, float scale, float softcap) override { inner_->scale_softcap(x, scale, softcap); }

  void run(uint64_t, const std::function<void()>& fn) override { inner_->run(0, fn); }
  BackendStats stats() const override { return inner_->stats(); }

 private:
  std::unique_ptr<Backend> inner_;
  ProductObserver observer_;
};

}  // namespace infer
