// Steps that are started and finished apart: draws on the backend, and the step that begins with tokens which the host
// has not seen. See step_runner.h.
#include <algorithm>
#include <utility>

#include "runtime/step_runner.h"

namespace infer {
namespace {

constexpr int64_t kRowInts = sizeof(SampleRow) / sizeof(int32_t), kDrawnInts = sizeof(Drawn) / sizeof(int32_t);

int64_t groups_of(int64_t vocab) { return (vocab + kSampleGroup - 1) / kSampleGroup; }

Tensor first(const Tensor& t, int64_t n) {
  Tensor out = t;
  out.dims[0] = n;
  return out;
}

}  // namespace

size_t StepRunner::sampling_bytes(const Config& config, const StepLimits& limits) {
  const int64_t integers = kRowInts + kSampleHistory + groups_of(config.vocab);
  return static_cast<size_t>(limits.max_seqs * integers) * sizeof(int32_t);
}

void StepRunner::allocate_sampling() {
  auto integers = [&](int64_t cols) {
    const auto bytes = static_cast<size_t>(limits_.max_seqs * cols) * sizeof(int32_t);
    buffers_.push_back(backend_.allocate(bytes));
    return Tensor(buffers_.back().get(), DType::I32, {limits_.max_seqs, cols});
  };
  draw_args_.n_valid = n_valid_;
  draw_args_.rows = integers(kRowInts);
  draw_args_.history = integers(kSampleHistory);
  draw_args_.group_max = integers(groups_of(config_.vocab));
  drawn_ = backend_.allocate_pinned(2 * static_cast<size_t>(limits_.max_seqs) * sizeof(Drawn));
  draw_rows_.reserve(static_cast<size_t>(limits_.max_seqs));
}

void StepRunner::start(std::span<const StepSequence> sequences) {
  const bool draws = std::any_of(sequences.begin(), sequences.end(), [](auto& s) { return s.draw != nullptr; });
  continuable_ = false;
  upload_batch(sequences);
  if (draws) upload_draws(sequences);
  continuable_ = std::all_of(sequences.begin(), sequences.end(),
                             [](auto& s) { return s.draw != nullptr && s.ids.size() == 1 && s.n_outputs == 1; });
  launch(draws);
}

void StepRunner::upload_draws(std::span<const StepSequence> sequences) {
  draw_rows_.clear();
  for (const StepSequence& sequence : sequences) {
    if (sequence.n_outputs == 0) continue;
    const auto row = static_cast<int64_t>(draw_rows_.size());
    draw_rows_.emplace_back();
    if (!sequence.draw) continue;
    draw_rows_.back() = *sequence.draw;
    draw_rows_.back().enabled = 1;
    draw_rows_.back().n_history = static_cast<int32_t>(sequence.history.size());
    if (!sequence.history.empty())
      backend_.upload(draw_args_.history.as<int32_t>() + row * kSampleHistory, sequence.history.data(),
                      sequence.history.size_bytes());
  }
  backend_.upload(draw_args_.rows.data, draw_rows_.data(), draw_rows_.size() * sizeof(SampleRow));
}

// Positions, slots and lengths on the device have been made larger by the draws; here the host's copies follow, and
// what a draw cannot know goes up: the slots and the pages of sequences that begin a page.
void StepRunner::start_next(std::span<const std::span<const PageId>> pages) {
  continuable_ = false;  // until all of it has gone well
  bool new_page = false;
  for (size_t s = 0; s < pages.size(); ++s) {
    const int64_t position = ++positions_[s];
    ++kv_len_[s];
    ++slots_[s];
    if (position % kPageTokens != 0) continue;
    new_page = true;
    const PageId page = pages[s][static_cast<size_t>(position / kPageTokens)];
    slots_[s] = static_cast<int32_t>(page * kPageTokens);
    backend_.upload(full_.page_table.as<int32_t>() + static_cast<int64_t>(s) * max_pages_ + position / kPageTokens,
                    &page, sizeof(PageId));
  }
  if (new_page) put(batch_.slots, full_.slots, slots_);
  for (int32_t kv_len : kv_len_) fill_ropes(kv_len);
  continuable_ = true;
  launch(true);
}

void StepRunner::launch(bool draws) {
  const bool next = std::exchange(continuable_, false);  // not if something throws here
  const auto place = static_cast<size_t>(n_started_ % 2);
  started_at_[place] = Clock::now();
  compute(nullptr);
  if (draws) {
    const int64_t n = batch_.n_outputs;
    SampleArgs args = draw_args_;
    args.logits = first(activations_.logits, n);
    args.rows = first(draw_args_.rows, n);
    args.history = first(draw_args_.history, n);
    args.group_max = first(draw_args_.group_max, n);
    args.out = first(full_.ids, n);
    args.host_out = Tensor(static_cast<Drawn*>(drawn_.get()) + static_cast<int64_t>(place) * limits_.max_seqs,
                           DType::I32, {n, kDrawnInts});
    if (next) args.positions = batch_.positions, args.slots = batch_.slots, args.kv_len = batch_.kv_len;
    backend_.sample(args);
  }
  marks_[place] = backend_.mark();
  ++n_started_;
  continuable_ = next;
}

void StepRunner::finish() {
  const auto place = static_cast<size_t>(n_finished_ % 2);
  backend_.wait_for(marks_[place]);
  ++n_finished_;
  const auto now = Clock::now();
  seconds_ = std::chrono::duration<double>(now - std::max(started_at_[place], finished_at_)).count();
  finished_at_ = now;
}

Drawn StepRunner::drawn(int64_t output) const {
  const int64_t place = (n_finished_ - 1) % 2;
  return static_cast<const Drawn*>(drawn_.get())[place * limits_.max_seqs + output];
}

}  // namespace infer
