// Cuts the block into its parts; the same walk, once without memory, gives its size.
#include "kernels/cpu/workspace.h"

#include <algorithm>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/memory.h"

namespace infer::cpu {
namespace {

/// Hands out aligned pieces of a block, or only counts them while `base` is null.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<uint8_t*>(base)) {}
  uint8_t* take(size_t bytes) {
    const size_t at = used_;
    used_ += (bytes + 127) / 128 * 128;
    return base_ == nullptr || bytes == 0 ? nullptr : base_ + at;
  }
  float* take_floats(int64_t n) { return reinterpret_cast<float*>(take(static_cast<size_t>(n) * sizeof(float))); }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

Prepared take_prepared(Carver& carver, const bool (&forms)[kForms], int64_t n_tokens, int64_t width) {
  Prepared p;
  for (int f = 0; f < kForms; ++f) {
    if (!forms[f]) continue;
    p.of[f] = carver.take(activation_bytes(static_cast<ActivationForm>(f), n_tokens, (width + 63) / 64 * 64));
  }
  return p;
}

}  // namespace

bool WorkspaceSize::covers(const WorkspaceSize& other) const {
  for (int f = 0; f < kForms; ++f) {
    if ((other.forms[f] && !forms[f]) || (other.expert_forms[f] && !expert_forms[f])) return false;
  }
  return n_tokens >= other.n_tokens && width >= other.width && head_dim >= other.head_dim && n_seqs >= other.n_seqs &&
         partial_floats >= other.partial_floats && expert_rows >= other.expert_rows &&
         expert_width >= other.expert_width;
}

void WorkspaceSize::include(const WorkspaceSize& other) {
  n_tokens = std::max(n_tokens, other.n_tokens);
  width = std::max(width, other.width);
  head_dim = std::max(head_dim, other.head_dim);
  n_seqs = std::max(n_seqs, other.n_seqs);
  partial_floats = std::max(partial_floats, other.partial_floats);
  expert_rows = std::max(expert_rows, other.expert_rows);
  expert_width = std::max(expert_width, other.expert_width);
  for (int f = 0; f < kForms; ++f) {
    forms[f] = forms[f] || other.forms[f];
    expert_forms[f] = expert_forms[f] || other.expert_forms[f];
  }
}

namespace {

void add_form(bool (&forms)[kForms], ActivationForm form) {
  forms[static_cast<int>(form)] = true;
  if (form == ActivationForm::int8) forms[static_cast<int>(ActivationForm::int8_rest)] = true;
}

}  // namespace

void WorkspaceSize::include_form(ActivationForm form) { add_form(forms, form); }
void WorkspaceSize::include_expert_form(ActivationForm form) { add_form(expert_forms, form); }

bool Workspace::ensure(const WorkspaceSize& size) {
  if (size_.covers(size)) return false;
  WorkspaceSize grown = size_;
  grown.include(size);
  auto carve = [&](void* base) {
    Carver carver(base);
    input = take_prepared(carver, grown.forms, grown.n_tokens, grown.width);
    inner = take_prepared(carver, grown.forms, grown.n_tokens, grown.width);
    expert_input = take_prepared(carver, grown.expert_forms, grown.expert_rows, grown.expert_width);
    expert_inner = take_prepared(carver, grown.expert_forms, grown.expert_rows, grown.expert_width);
    partials = carver.take_floats(grown.partial_floats);
    for (Thread& t : threads_) {
      t.row = carver.take_floats(grown.width);
      t.own = take_prepared(carver, grown.forms, kOwnTokens, grown.width);
      t.own_stage = 0;
      t.matmul = carver.take(matmul_scratch_bytes());
      t.attention = carver.take_floats(attention_scratch_floats(grown.head_dim));
    }
    return carver.used();
  };
  const size_t bytes = carve(nullptr);
  block_.reset();
  size_ = {};
  block_ = map_memory(bytes, live_);
  carve(block_.get());
  size_ = grown;
  return true;
}

}  // namespace infer::cpu
