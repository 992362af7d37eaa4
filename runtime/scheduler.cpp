// The policy of scheduler.h.
#include "runtime/scheduler.h"

#include <algorithm>

namespace infer {
namespace {

int64_t pages_for(int64_t n_tokens, int64_t page_tokens) { return (n_tokens + page_tokens - 1) / page_tokens; }

// Exactly one token to compute and some before it: a sequence that talks. A prompt of one token counts, too.
bool decodes(const SequenceView& s) { return s.running && s.n_tokens - s.n_computed == 1; }

class StepPlanner {
 public:
  StepPlanner(std::span<const SequenceView> sequences, int64_t n_available, const SchedulerLimits& limits,
              Schedule& schedule)
      : sequences_(sequences), n_available_(n_available), limits_(limits), schedule_(schedule) {
    schedule_.work.clear();
    schedule_.preempted.clear();
  }

  void plan() {
    const bool somebody_decodes = std::any_of(sequences_.begin(), sequences_.end(), decodes);
    int64_t chunk = somebody_decodes ? std::min(limits_.chunk_beside_decodes, limits_.max_tokens) : limits_.max_tokens;
    int64_t left = limits_.max_tokens;
    for (size_t i = 0; i < sequences_.size() && left > 0; ++i)
      if (decodes(sequences_[i]) && !is_preempted(i)) left -= give(i, 1);
    chunk = std::min(chunk, left);
    for (size_t i = 0; i < sequences_.size() && chunk > 0; ++i) {
      const SequenceView& s = sequences_[i];
      if (!s.running || decodes(s) || is_preempted(i)) continue;
      chunk -= give(i, std::min(chunk, s.n_tokens - s.n_computed));
    }
    std::sort(schedule_.work.begin(), schedule_.work.end(), [](auto& a, auto& b) { return a.index < b.index; });
  }

 private:
  // Grants up to `n` tokens, as many as there are pages for, at least one if a newer sequence can make room for it.
  int64_t give(size_t index, int64_t n) {
    const SequenceView& s = sequences_[index];
    const int64_t capacity = s.n_pages * limits_.page_tokens;
    auto fits = [&] { return std::min(n, capacity + n_available_ * limits_.page_tokens - s.n_computed); };
    while (fits() <= 0)
      if (!preempt_newest_after(index)) return 0;
    n = fits();
    n_available_ -= std::max<int64_t>(0, pages_for(s.n_computed + n, limits_.page_tokens) - s.n_pages);
    schedule_.work.push_back({index, n});
    return n;
  }

  bool preempt_newest_after(size_t index) {
    for (size_t i = sequences_.size(); i-- > index + 1;) {
      if (!sequences_[i].running || is_preempted(i)) continue;
      std::erase_if(schedule_.work, [&](const Schedule::Work& w) {
        if (w.index != i) return false;
        n_available_ += std::max<int64_t>(
            0, pages_for(sequences_[i].n_computed + w.n_tokens, limits_.page_tokens) - sequences_[i].n_pages);
        return true;
      });
      n_available_ += sequences_[i].n_private;
      schedule_.preempted.push_back(i);
      return true;
    }
    return false;
  }

  bool is_preempted(size_t index) const {
    return std::find(schedule_.preempted.begin(), schedule_.preempted.end(), index) != schedule_.preempted.end();
  }

  std::span<const SequenceView> sequences_;
  int64_t n_available_;
  const SchedulerLimits& limits_;
  Schedule& schedule_;
};

}  // namespace

std::optional<size_t> admit(std::span<const SequenceView> sequences, int64_t n_available,
                            const SchedulerLimits& limits) {
  int64_t n_running = 0;
  std::optional<size_t> first;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceView& s = sequences[i];
    if (!s.running) {
      if (!first) first = i;  // nobody overtakes: a large prompt would wait for ever
      continue;
    }
    ++n_running;
    n_available -= std::max<int64_t>(0, pages_for(s.n_tokens + 1, limits.page_tokens) - s.n_pages);
  }
  if (!first || n_running >= limits.max_running) return std::nullopt;
  const SequenceView& s = sequences[*first];
  const int64_t wanted = pages_for(s.n_tokens + 1, limits.page_tokens) - s.n_shared;
  return n_running == 0 || wanted <= n_available ? first : std::nullopt;
}

void plan_step(std::span<const SequenceView> sequences, int64_t n_available, const SchedulerLimits& limits,
               Schedule& schedule) {
  StepPlanner(sequences, n_available, limits, schedule).plan();
}

}  // namespace infer
