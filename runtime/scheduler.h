// Which sequences run in the next step and with how many tokens: pure policy on integers, no pages, no tensors, no
// state. The rules: first come, first served. Everyone who decodes gets a token in every step; prompts are computed in
// chunks with the room that is left, the oldest first, in smaller chunks while others decode, so that a long prompt
// does not stop the talk of the rest. When pages run out the newest sequence gives back its own and is computed again
// later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace infer {

struct SchedulerLimits {
  int64_t max_tokens = 512;  ///< of one step
  int64_t max_running = 1;   ///< sequences that may hold pages
  int64_t page_tokens = 32;
  int64_t chunk_beside_decodes = 128;  ///< prompt tokens of a step in which somebody decodes
};

/// A sequence as the scheduler sees it. Lists of these are in order of arrival.
struct SequenceView {
  bool running = false;    ///< holds pages; else it waits
  int64_t n_tokens = 0;    ///< known: prompt and generated ones
  int64_t n_computed = 0;  ///< of these, with K and V in pages
  int64_t n_pages = 0;     ///< held
  int64_t n_private = 0;   ///< of these, held by nobody else
  int64_t n_shared = 0;    ///< of one that waits: pages that others hold and it would share
};

struct Schedule {
  struct Work {
    size_t index;      ///< into the views
    int64_t n_tokens;  ///< to compute, from n_computed on
  };
  std::vector<Work> work;         ///< in order of arrival
  std::vector<size_t> preempted;  ///< to be stripped of their pages before the work is done
};

/// The waiting sequence that may start now, if any: the first one, when its known tokens fit into the pages that those
/// who run have no claim to: a prompt that is being computed will want the pages of all of it. When nothing runs it
/// always may.
std::optional<size_t> admit(std::span<const SequenceView> sequences, int64_t n_available,
                            const SchedulerLimits& limits);

/// The work of one step. `schedule` keeps its storage between steps. Empty work with preempted sequences means: plan
/// again, shared pages may have become free.
void plan_step(std::span<const SequenceView> sequences, int64_t n_available, const SchedulerLimits& limits,
               Schedule& schedule);

}  // namespace infer
