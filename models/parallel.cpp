// A shared counter hands out task numbers; the calling thread sleeps until some task ends, then reports.
#include "models/parallel.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <numeric>
#include <system_error>
#include <thread>

namespace infer {
namespace {

class Run {
 public:
  Run(const std::vector<double>& work, const std::function<void(size_t)>& task) : work_(work), task_(task) {}

  /// One thread's share: takes tasks until none is left.
  void worker() {
    std::unique_lock lock(mutex_);
    while (!stopped_ && next_ < work_.size()) {
      const size_t i = next_++;
      lock.unlock();
      std::exception_ptr error;
      try {
        task_(i);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && i < failed_) {
        failed_ = i;
        error_ = error;
        stopped_ = true;
      }
      done_ += work_[i];
      changed_.notify_one();
    }
    --active_;
    changed_.notify_one();
  }

  /// The calling thread: reports until all workers have ended. Returns false if `progress` did.
  bool watch(const std::function<bool(double)>& progress, double total) {
    std::unique_lock lock(mutex_);
    bool cancelled = false;
    double reported = 0;
    // The last task may have ended before this thread got here: its end is reported all the same.
    while (active_ > 0 || done_ != reported) {
      changed_.wait(lock, [&] { return active_ == 0 || done_ != reported; });
      if (done_ == reported) continue;
      reported = done_;
      if (!progress || cancelled || stopped_) continue;
      lock.unlock();
      std::exception_ptr error;
      try {
        cancelled = !progress(total > 0 ? reported / total : 1);
      } catch (...) {
        error = std::current_exception();  // the caller's own: outranks what tasks throw
      }
      lock.lock();
      if (error) failed_ = 0, error_ = error;
      if (error || cancelled) stopped_ = true;
    }
    if (error_) std::rethrow_exception(error_);
    return !cancelled;
  }

  void add_worker() {
    const std::lock_guard lock(mutex_);
    ++active_;
  }
  void drop_worker() {
    const std::lock_guard lock(mutex_);
    --active_;
  }

 private:
  const std::vector<double>& work_;
  const std::function<void(size_t)>& task_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t next_ = 0, failed_ = SIZE_MAX;
  int active_ = 0;
  double done_ = 0;
  bool stopped_ = false;
  std::exception_ptr error_;
};

}  // namespace

bool run_parallel(const std::vector<double>& work, int n_threads, const std::function<void(size_t)>& task,
                  const std::function<bool(double)>& progress) {
  if (progress && !progress(0)) return false;
  Run run(work, task);
  std::vector<std::jthread> threads;
  const size_t wanted = std::min(work.size(), static_cast<size_t>(std::max(1, n_threads)));
  for (size_t i = 0; i < wanted; ++i) {
    run.add_worker();
    try {
      threads.emplace_back([&run] { run.worker(); });
    } catch (const std::system_error&) {  // no more threads to be had: go on with those there are, at worst with this
      if (threads.empty()) {
        run.worker();
      } else {
        run.drop_worker();
      }
      break;
    }
  }
  const double total = std::accumulate(work.begin(), work.end(), 0.0);
  return run.watch(progress, total);
}

}  // namespace infer
