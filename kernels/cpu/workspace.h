// All scratch of the cpu backend in one block: prepared activations that the threads share, and what each thread needs
// for itself. Grows when a step is larger than any before; after prepare() none is.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu/matmul.h"

namespace infer::cpu {

inline constexpr int kForms = 3;  ///< of ActivationForm
/// Steps of up to this many tokens let every thread prepare the activations for itself, which costs less than to wait
/// for one another.
inline constexpr int64_t kOwnTokens = 2;

struct WorkspaceSize {
  int64_t n_tokens = 0, width = 0;  ///< rows of a step, longest row
  int64_t head_dim = 0;
  int64_t n_seqs = 0;
  int64_t partial_floats = 0;
  bool forms[kForms] = {};
  int64_t expert_rows = 0, expert_width = 0;  ///< of the experts of all tokens together
  bool expert_forms[kForms] = {};
  bool covers(const WorkspaceSize& other) const;
  void include(const WorkspaceSize& other);
  /// int8 brings int8_rest with it.
  void include_form(ActivationForm form);
  void include_expert_form(ActivationForm form);
};

/// Prepared activations, one buffer per form: [n_tokens] rows of activation_bytes(form, 1, k).
struct Prepared {
  uint8_t* of[kForms] = {};
  uint8_t* operator[](ActivationForm form) const { return of[static_cast<int>(form)]; }
};

class Workspace {
 public:
  Workspace(int n_threads, std::shared_ptr<std::atomic<int64_t>> live) : live_(std::move(live)), threads_(n_threads) {}

  struct Thread {
    float* row = nullptr;    ///< f32 [width]
    Prepared own;            ///< kOwnTokens rows
    uint64_t own_stage = 0;  ///< the stage that `own` was prepared for
    uint8_t* matmul = nullptr;
    float* attention = nullptr;
    char pad[64];  // keeps own_stage of two threads off one cache line
  };

  /// Makes room; contents are lost when it grows. True if it had to.
  bool ensure(const WorkspaceSize& size);

  Prepared input, inner;                ///< of a stage's first product, and of what lies between its two
  Prepared expert_input, expert_inner;  ///< the same for experts, [expert_rows]
  float* partials = nullptr;
  Thread& thread(int i) { return threads_[static_cast<size_t>(i)]; }
  const WorkspaceSize& size() const { return size_; }

 private:
  std::shared_ptr<std::atomic<int64_t>> live_;
  std::vector<Thread> threads_;
  std::shared_ptr<void> block_;
  WorkspaceSize size_;
};

}  // namespace infer::cpu
