// See thread_pool.h. Waiting is spin, then futex: the spin is as long as waits have lately been worth spinning for, so
// that on a quiet machine phases follow each other without a system call, while on a busy one a waiting thread hands
// its share of the core back at once. That matters more than it seems: two threads that burn their time slices on
// waiting for one another seldom run at the same moment, two that sleep are woken together.
#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <utility>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "infer/error.h"

namespace infer::cpu {
namespace {

constexpr int64_t kMinSpinNs = 4'000;
constexpr int64_t kMaxSpinNs = 120'000;
constexpr uint64_t kChunkMask = (uint64_t{1} << 24) - 1;

uint64_t next_of(uint64_t state) { return state & kChunkMask; }
uint64_t count_of(uint64_t state) { return (state >> 24) & kChunkMask; }
bool claimable(uint64_t state) { return next_of(state) < count_of(state); }

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(std::max(1, n_threads)), slots_(new Slot[n_threads_]) {
  for (int i = 0; i < n_threads_; ++i) slots_[i].spin_ns = kMaxSpinNs;
  threads_.reserve(static_cast<size_t>(n_threads_ - 1));
  try {
    for (int i = 1; i < n_threads_; ++i) threads_.emplace_back([this, i] { worker_loop(i); });
  } catch (const std::exception& e) {
    stop_ = true;
    wake_workers(n_threads_);
    for (std::thread& t : threads_) t.join();
    throw Error(ErrorKind::run, "threads", std::string("cannot start a thread: ") + e.what(),
                std::to_string(n_threads_));
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  wake_workers(n_threads_);
  for (std::thread& t : threads_) t.join();
}

int64_t ThreadPool::n_sleeps() const {
  int64_t sum = 0;
  for (int i = 0; i < n_threads_; ++i) sum += slots_[i].sleeps.load(std::memory_order_relaxed);
  return sum;
}

void ThreadPool::run_list(const Phase* phases, size_t n) {
  n_phases_ = 0;
  for (size_t i = 0; i < n; ++i) {
    if (phases[i].n_chunks > kMaxChunks) {
      throw Error(ErrorKind::run, "thread pool", "too many chunks", std::to_string(phases[i].n_chunks),
                  "at most " + std::to_string(kMaxChunks));
    }
    if (phases[i].n_chunks > 0) phases_[n_phases_++] = phases[i];
  }
  ++n_regions_;
  if (n_threads_ == 1) {
    for (size_t i = 0; i < n_phases_; ++i) {
      for (int64_t c = 0; c < phases_[i].n_chunks; ++c) phases_[i].call(phases_[i].context, c, 0);
    }
    return;
  }
  if (n_phases_ == 0) return;
  open_phase(0);
  while (true) {
    const uint64_t seen = state_.load();
    if (count_of(seen) == 0) return;
    if (!run_chunk(0)) wait_for_change(0, seen);
  }
}

// Publishes phase `index` or, past the last one, the end of the region: no chunks. Only the caller of run() before the
// region and the thread that finished a phase get here, so there is one at a time. The store of state_ hands everything
// over and must be the last write: the caller may leave the region and open another at once.
void ThreadPool::open_phase(size_t index) {
  const uint64_t counter = (state_.load(std::memory_order_relaxed) >> 48) + 1;
  finished_.store(0, std::memory_order_relaxed);
  current_ = index;
  if (index == n_phases_) {
    state_.store(counter << 48);
    wake(0);
    return;
  }
  const int64_t n = phases_[index].n_chunks;
  state_.store(counter << 48 | static_cast<uint64_t>(n) << 24);
  if (n > 1 && n_parked_.load() > 0) wake_workers(n - 1);
}

// Claims and runs one chunk; false when the present phase has none left.
bool ThreadPool::run_chunk(int thread) {
  uint64_t state = state_.load();
  do {
    if (!claimable(state)) return false;
  } while (!state_.compare_exchange_weak(state, state + 1));
  // Holding a chunk keeps the phase open: what follows is stable.
  const size_t index = current_;
  const Phase& phase = phases_[index];
  const int64_t n = phase.n_chunks;
  phase.call(phase.context, static_cast<int64_t>(next_of(state)), thread);
  if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == n) open_phase(index + 1);
  return true;
}

// Returns when state_ is no longer `seen`, in which there was nothing to claim, or when the pool stops.
void ThreadPool::wait_for_change(int thread, uint64_t seen) {
  Slot& slot = slots_[thread];
  auto changed = [&] {
    const uint64_t state = state_.load();
    return (state != seen && (thread == 0 || claimable(state))) || stop_.load(std::memory_order_relaxed);
  };
  for (int i = 0; i < 64; ++i) {
    if (changed()) return;
    relax();
  }
  const int64_t start = now_ns();
  while (now_ns() - start < slot.spin_ns) {
    for (int i = 0; i < 32; ++i) {
      if (changed()) return;
      relax();
    }
  }
  // Parked before the last look at state_; open_phase stores state_ before it looks at parked: one of the two sees it.
  // n_parked_ never counts too few: it goes up before the flag and down after it.
  n_parked_.fetch_add(1);
  slot.parked.store(1);
  if (changed()) {
    if (slot.parked.exchange(0) == 1) n_parked_.fetch_sub(1);
    return;
  }
  slot.sleeps.fetch_add(1, std::memory_order_relaxed);
  while (slot.parked.load() == 1) futex_wait(slot.parked, 1);
  const bool spinning_would_have_done = now_ns() - start < kMaxSpinNs;
  slot.spin_ns =
      spinning_would_have_done ? std::min(kMaxSpinNs, slot.spin_ns * 2) : std::max(kMinSpinNs, slot.spin_ns / 2);
}

void ThreadPool::wake(int thread) {
  Slot& slot = slots_[thread];
  if (slot.parked.load() == 1 && slot.parked.exchange(0) == 1) {
    n_parked_.fetch_sub(1);
    futex_wake(slot.parked);
  }
}

void ThreadPool::wake_workers(int64_t at_most) {
  for (int i = 0; i < n_threads_ && at_most > 0; ++i) {
    if (slots_[i].parked.load() == 0) continue;
    wake(i);
    --at_most;
  }
}

void ThreadPool::worker_loop(int thread) {
  while (!stop_.load(std::memory_order_relaxed)) {
    const uint64_t seen = state_.load();
    if (!run_chunk(thread)) wait_for_change(thread, seen);
  }
}

namespace {

// First line of a small system file; empty when there is none.
std::string read_line(const std::string& path) {
  std::string line;
  if (FILE* f = std::fopen(path.c_str(), "r")) {
    char buffer[256];
    if (std::fgets(buffer, sizeof buffer, f)) line = buffer;
    std::fclose(f);
  }
  return line;
}

// CPUs granted by a cgroup's quota, rounded down: a thread more than that is throttled together with all the others.
int quota_cpus(const std::string& quota, const std::string& period) {
  char* end = nullptr;
  const double q = std::strtod(quota.c_str(), &end), p = std::strtod(period.c_str(), nullptr);
  if (end == quota.c_str() || q <= 0 || p <= 0) return 0;  // "max", -1 or no such file
  return std::max(1, static_cast<int>(std::min(q / p, 1e6)));
}

// 0: no limit. Containers see their own group at the root; a service on the host sees it under the path that
// /proc/self/cgroup names, where every level above limits too.
int cgroup_cpus() {
  int limit = 0;
  auto apply = [&](int cpus) {
    if (cpus > 0) limit = limit == 0 ? cpus : std::min(limit, cpus);
  };
  auto apply_v2 = [&](const std::string& folder) {
    const std::string line = read_line(folder + "/cpu.max");
    const size_t space = line.find(' ');
    if (space != std::string::npos) apply(quota_cpus(line.substr(0, space), line.substr(space + 1)));
  };
  std::string group = read_line("/proc/self/cgroup");
  if (group.rfind("0::/", 0) == 0) {
    group = group.substr(3, group.find_last_not_of('\n') - 2);
    for (int level = 0; level < 32 && group.size() > 1; ++level) {
      apply_v2("/sys/fs/cgroup" + group);
      group.resize(group.rfind('/'));
    }
  }
  apply_v2("/sys/fs/cgroup");
  for (const char* folder : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"}) {
    const std::string base = folder;
    apply(quota_cpus(read_line(base + "/cpu.cfs_quota_us"), read_line(base + "/cpu.cfs_period_us")));
  }
  return limit;
}

}  // namespace

int default_threads() {
  constexpr int kMostCpus = 4096;
  cpu_set_t* set = CPU_ALLOC(kMostCpus);
  if (set == nullptr) return 1;
  const size_t bytes = CPU_ALLOC_SIZE(kMostCpus);
  CPU_ZERO_S(bytes, set);
  std::set<std::pair<std::string, std::string>> cores;
  if (sched_getaffinity(0, bytes, set) == 0) {
    for (int i = 0; i < kMostCpus; ++i) {
      if (!CPU_ISSET_S(i, bytes, set)) continue;
      const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/";
      const std::string package = read_line(folder + "physical_package_id"), core = read_line(folder + "core_id");
      // A machine that hides its topology counts every CPU as a core.
      cores.emplace(package, core.empty() ? "cpu " + std::to_string(i) : core);
    }
  }
  CPU_FREE(set);
  int n = cores.empty() ? 1 : static_cast<int>(cores.size());
  if (const int limit = cgroup_cpus(); limit > 0) n = std::min(n, limit);
  return std::clamp(n, 1, 256);
}

}  // namespace infer::cpu
