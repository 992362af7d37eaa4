// Threads of the cpu backend. A region is a short list of phases; a phase is a number of chunks that any thread may
// claim; the thread that finishes the last chunk of a phase opens the next one. It knows nothing of tensors.
//
// Nobody ever waits for a thread, only for chunks: a thread that the system has taken off its core while it held no
// chunk costs nothing, and one that is late finds the work done. Claim, phase and size share one atomic word, so that a
// claim that succeeds is a claim of the present phase, however long the thread slept before it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace infer::cpu {

class ThreadPool {
 public:
  /// `n_threads` counts the calling thread; at least 1.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  /// fn(chunk, thread) for chunk in [0, n_chunks); must not throw. Refers to `fn`, which must outlive the region.
  struct Phase {
    int64_t n_chunks = 0;
    void* context = nullptr;
    void (*call)(void* context, int64_t chunk, int thread) = nullptr;
  };
  template <class F>
  static Phase phase(int64_t n_chunks, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    return {n_chunks, const_cast<void*>(static_cast<const void*>(&fn)),
            [](void* context, int64_t chunk, int thread) { (*static_cast<Fn*>(context))(chunk, thread); }};
  }

  /// Runs the phases one after another and returns when the last is done. All chunks of a phase see what every chunk of
  /// the phases before wrote. Allocates nothing. One region at a time, always from the same calling thread.
  template <class... Phases>
  void run(const Phases&... phases) {
    static_assert(sizeof...(phases) <= kMaxPhases);
    const Phase list[] = {phases...};
    run_list(list, sizeof...(phases));
  }
  /// One phase.
  template <class F>
  void parallel(int64_t n_chunks, F&& fn) {
    run(phase(n_chunks, fn));
  }

  int64_t n_regions() const { return n_regions_; }
  /// How often a thread gave up spinning and slept.
  int64_t n_sleeps() const;

  static constexpr int64_t kMaxChunks = (int64_t{1} << 24) - 1;
  static constexpr size_t kMaxPhases = 8;

 private:
  struct alignas(64) Slot {
    std::atomic<uint32_t> parked{0};  // futex word: 1 while the thread sleeps or is about to
    std::atomic<int64_t> sleeps{0};
    int64_t spin_ns = 0;
  };

  void run_list(const Phase* phases, size_t n);
  bool run_chunk(int thread);
  void open_phase(size_t index);
  void wait_for_change(int thread, uint64_t seen);
  void wake_workers(int64_t at_most);
  void wake(int thread);
  void worker_loop(int thread);

  int n_threads_ = 1;
  int64_t n_regions_ = 0;
  std::unique_ptr<Slot[]> slots_;
  std::vector<std::thread> threads_;

  // Bits 0..23 next unclaimed chunk, 24..47 number of chunks (0: no region), 48..63 phase counter.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> finished_{0};  // chunks of this phase
  alignas(64) std::atomic<int> n_parked_{0};
  std::atomic<bool> stop_{false};
  Phase phases_[kMaxPhases];
  size_t n_phases_ = 0;
  size_t current_ = 0;
};

/// Threads worth starting on this machine: physical cores of the CPUs this process may run on, at most the cgroup's
/// quota.
int default_threads();

}  // namespace infer::cpu
