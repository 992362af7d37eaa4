// What a child writes goes to files in memory that its parent reads; see forked_calls.h.
#include "tests/tools/forked_calls.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "tools/commands.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

namespace infer::test {
namespace {

constexpr size_t kCallsOfProcess = 200;
constexpr int kNotDone = -1002;

class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("call", MFD_CLOEXEC)) {
    if (fd_ < 0) throw std::runtime_error("memfd_create");
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  void take(int fd) const { dup2(fd_, fd); }
  std::string text() const {
    std::string out(static_cast<size_t>(lseek(fd_, 0, SEEK_END)), '\0');
    if (pread(fd_, out.data(), out.size(), 0) != static_cast<ssize_t>(out.size())) throw std::runtime_error("pread");
    return out;
  }

 private:
  int fd_;
};

struct Progress {
  int status[kCallsOfProcess];
  double cpu_seconds[kCallsOfProcess];
};

double cpu_seconds() {
  rusage used = {};
  getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

bool has_leaked() {
#ifdef __SANITIZE_ADDRESS__
  return __lsan_do_recoverable_leak_check() != 0;
#else
  return false;
#endif
}

[[noreturn]] void run_all(const std::vector<std::vector<std::string>>& calls, size_t first, size_t n,
                          const MemoryFile* out, const MemoryFile* err, unsigned timeout_seconds, Progress& progress) {
  setenv("NO_COLOR", "1", 1), setenv("CUDA_VISIBLE_DEVICES", "", 1);
  for (const int number : {SIGALRM, SIGABRT, SIGSEGV, SIGBUS}) signal(number, SIG_DFL);  // Catch's report is not wanted
  for (size_t i = 0; i < n; ++i) {
    out[i].take(1), err[i].take(2);
    alarm(timeout_seconds);
    const double start = cpu_seconds();
    const int status = tools::run_program(calls[first + i]);
    std::fflush(stdout);
    progress.cpu_seconds[i] = cpu_seconds() - start;
    progress.status[i] = status;
  }
  alarm(0);
  if (has_leaked()) progress.status[n - 1] = kLeaked;
  _exit(0);
}

}  // namespace

std::vector<Outcome> run_forked(const std::vector<std::vector<std::string>>& calls, unsigned timeout_seconds) {
  auto* progress = static_cast<Progress*>(
      mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  if (progress == MAP_FAILED) throw std::runtime_error("mmap");
  std::vector<Outcome> outcomes;
  while (outcomes.size() < calls.size()) {
    const size_t first = outcomes.size(), n = std::min(kCallsOfProcess, calls.size() - first);
    std::fill_n(progress->status, n, kNotDone);
    const MemoryFile out[kCallsOfProcess], err[kCallsOfProcess];
    std::fflush(nullptr);
    const int pid = fork();
    if (pid < 0) throw std::runtime_error("fork");
    if (pid == 0) run_all(calls, first, n, out, err, timeout_seconds, *progress);
    int ended = 0;
    waitpid(pid, &ended, 0);
    for (size_t i = 0; i < n; ++i) {
      Outcome o;
      o.out = out[i].text(), o.err = err[i].text();
      const bool done = progress->status[i] != kNotDone;
      // The sanitizers' own end has a status that a call can have too.
      o.status = done ? progress->status[i] : WIFSIGNALED(ended) ? -WTERMSIG(ended) : -WEXITSTATUS(ended);
      o.cpu_seconds = done ? progress->cpu_seconds[i] : 0;
      outcomes.push_back(o);
      if (!done) break;
    }
  }
  munmap(progress, sizeof(Progress));
  return outcomes;
}

}  // namespace infer::test
