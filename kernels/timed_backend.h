// A backend whose time can be looked into: every op goes to another backend, fused stages as such, between two stamps
// of that backend's clock. Looking at ops runs steps call by call; looking at steps leaves them as they are, recorded
// or not; looking at prefixes runs the beginnings of such steps and drops the rest. What an op moves and computes comes
// from its arguments (ops.h). Stamps are read between steps, by collect().
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace infer {

/// All calls of one op so far.
struct OpTally {
  std::string name;
  int64_t n_calls = 0, n_launches = 0;
  double seconds = 0;
  OpCost cost;
  double call_bytes = 0;  ///< most that one call touches
};

/// One call of an op, and how long it took.
struct OpTime {
  std::string name;
  double seconds = 0;
};

/// What the calls of an op launch in the first step that has it.
struct OpKernels {
  std::string name;
  int64_t step = 0;  ///< that one's number
  std::vector<KernelUse> kernels;
};

/// Steps so far. `seconds` of a step: from its first op to the end of its last, a draw included.
struct StepTally {
  int64_t n_steps = 0, n_launches = 0;
  double seconds = 0, gap_seconds = 0;  ///< gap: from the end of a step to the begin of the next
  double cpu_seconds = 0;               ///< of the calling thread in them
};

class TimedBackend final : public Backend {
 public:
  enum class Look { nothing, steps, ops, prefixes };
  static constexpr int64_t kWhole = INT64_MAX;
  /// Tokens of one sequence in a step: `n` from `position` on.
  struct Share {
    int64_t position, n;
  };

  explicit TimedBackend(std::unique_ptr<Backend> backend);

  /// From the next step on; what was stamped before has been collected.
  void look_at(Look look);
  /// Forgets what was counted.
  void reset();
  /// The shares of the steps to come, which say what attention reads; the arguments of an op hold only device memory.
  void expect(std::vector<Share> shares) { shares_ = std::move(shares); }
  /// Of the steps to come that are looked at as prefixes, only the first n_ops ops run, and a draw only if all do.
  /// Steps of the same key have run as a whole before.
  void cut_after(int64_t n_ops) { cut_ = n_ops; }
  /// Waits for what has been stamped and adds it up. Between steps.
  void collect();
  /// Of the last of the steps collected last.
  double last_seconds() const { return last_seconds_; }
  /// The ops of the steps collected last, in order, where they were looked at.
  const std::vector<OpTime>& last_ops() const { return last_ops_; }
  /// In the order of their first calls.
  const std::vector<OpTally>& ops() const { return ops_; }
  /// Those that were looked at in this way.
  const StepTally& steps(Look look) const { return steps_[static_cast<size_t>(look)]; }
  /// Of an op; empty where the backend tells none. These and the next are not forgotten by reset().
  std::vector<KernelUse> kernels(const std::string& op) const;
  /// Of steps that were looked at as steps, where one kernel takes the whole of one.
  const std::vector<KernelUse>& step_kernels() const { return step_kernels_; }
  /// Seconds of an op that has next to nothing to do.
  double launch_seconds();

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
  uint64_t mark() override;  ///< ends a step
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
  size_t cache_bytes() const override { return inner_->cache_bytes(); }
  std::vector<FormatCrossovers> crossovers() const override { return inner_->crossovers(); }

  void embed(const EmbedArgs& args) override;
  void norm(const NormArgs& args) override;
  void matmul(const MatmulArgs& args) override;
  void activate(const ActivateArgs& args) override;
  void add(const AddArgs& args) override;
  void rope_store(const RopeStoreArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override;
  void scale_softcap(const Tensor& x, float scale, float softcap) override;
  void route(const RouteArgs& args) override;
  void expert_matmul(const ExpertMatmulArgs& args) override;
  void combine(const CombineArgs& args) override;
  bool samples(const SampleRow& row) const override { return inner_->samples(row); }
  void sample(const SampleArgs& args) override;

  void attn_in(const AttnInArgs& args) override;
  void attn_out(const AttnOutArgs& args) override;
  void ffn(const FfnArgs& args) override;
  void moe_ffn(const MoeFfnArgs& args) override;
  void logits(const LogitsArgs& args) override;

  void run(uint64_t key, const std::function<void()>& fn) override;
  BackendStats stats() const override { return inner_->stats(); }

 private:
  struct Timed {
    size_t op;
    uint64_t begin, end;
  };
  struct Step {
    uint64_t begin, end;
  };
  template <class Fn>
  void op(const char* name, const OpCost& cost, Fn fn);
  size_t tally(const char* name);
  void note_kernels(const char* name, const std::function<void()>& fn);
  StepTally& now() { return steps_[static_cast<size_t>(look_)]; }
  int64_t launches() const;

  std::unique_ptr<Backend> inner_;
  WeightSizes sizes_;
  Look look_ = Look::nothing;
  std::vector<Share> shares_;
  std::vector<OpTally> ops_;
  std::vector<OpKernels> kernels_;
  std::vector<KernelUse> step_kernels_;
  int64_t n_ops_steps_ = 0;        ///< looked at by ops, ever
  StepTally steps_[4];             // by Look
  std::vector<Timed> timed_;       // not collected yet
  std::vector<Step> timed_steps_;  // likewise
  double last_seconds_ = 0;
  std::vector<OpTime> last_ops_;
  int64_t cut_ = kWhole, left_ = kWhole;  ///< ops of a prefix; those of them that have not run yet
  bool in_step_ = false;
  double cpu_begin_ = 0;
  int64_t launches_begin_ = 0;
};

/// Seconds that the calling thread has been on a core.
double thread_cpu_seconds();

}  // namespace infer
