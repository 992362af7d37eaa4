// Terminal manners; see terminal.h.
#include "tools/terminal.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "infer/error.h"

namespace infer::tools {
namespace {

std::atomic<int> interrupts{0};
int first_output_error = 0;

extern "C" void on_interrupt(int) {
  if (interrupts.fetch_add(1) >= 1) _exit(130);
}

// The whole message of a bus error, made beforehand: a signal handler may only write.
char bus_error_message[512];

extern "C" void on_bus_error(int) {
  const ssize_t written = write(2, bus_error_message, std::strlen(bus_error_message));
  _exit(written < 0 ? 1 : 3);
}

}  // namespace

bool is_terminal(int fd) { return isatty(fd) == 1; }

bool same_output(int fd, int other) {
  struct stat a = {}, b = {};
  return fstat(fd, &a) == 0 && fstat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

bool write_out(const std::string& text, bool flush) {
  if (first_output_error) return false;
  const bool good = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!good || (flush && std::fflush(stdout) != 0)) set_output_error(errno);
  return first_output_error == 0;
}

void set_output_error(int error) {
  if (!first_output_error) first_output_error = error;
}

int output_error() {
  if (!first_output_error && std::fflush(stdout) != 0) set_output_error(errno);
  return first_output_error;
}

const char* colour(const char* sequence) {
  static const bool on = is_terminal(2) && !std::getenv("NO_COLOR");
  return on ? sequence : "";
}

ProgressBar::ProgressBar(std::string label, bool with_eta)
    : label_(std::move(label)),
      start_(std::chrono::steady_clock::now()),
      enabled_(is_terminal(2)),
      with_eta_(with_eta) {}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::clear() {
  if (drawn_) note("\r\033[K");
  drawn_ = false;
  shown_ = -1;
}

void ProgressBar::update(double fraction) {
  if (!enabled_ || std::chrono::steady_clock::now() - start_ < std::chrono::seconds(1)) return;
  constexpr int width = 40;
  const int filled = static_cast<int>(fraction * width), percent = static_cast<int>(fraction * 100);
  if (percent == shown_) return;
  shown_ = percent, drawn_ = true;
  note("\r{} [{:=<{}}{:{}}] {:3}%", label_, "", filled, "", width - filled, percent);
  if (with_eta_ && fraction > 0) {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
    const auto left = static_cast<int64_t>(spent.count() * (1 - fraction) / fraction + 0.5);
    note(", {}:{:02} left\033[K", left / 60, left % 60);
  }
  std::fflush(stderr);
}

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;  // no SA_RESTART: a read at the prompt returns with EINTR
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

void install_terminate_as_interrupt() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGXFSZ, SIG_IGN);
}

void explain_bus_error(const std::string& path) {
  const std::string text = fmt::format(
      "error: {}: the file shrank, or its disk failed, while it was in use (SIGBUS); --no-mmap reads it once\n",
      escaped(path, 300));
  text.copy(bus_error_message, sizeof bus_error_message - 1);
  signal(SIGBUS, on_bus_error);
}

bool interrupted() { return interrupts.load() > 0; }
void clear_interrupt() { interrupts.store(0); }

size_t peak_memory() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int u = 0;
  while (bytes >= 999.5 && u < 4) bytes /= 1000, ++u;
  return fmt::format("{:.{}f} {}", bytes, bytes < 10 && u > 0 ? 1 : 0, units[u]);
}

std::string read_all_stdin() {
  std::string text;
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = read(0, buffer, sizeof buffer);
    if (n > 0) text.append(buffer, static_cast<size_t>(n));
    if (n == 0) return text;
    if (n < 0 && (errno != EINTR || interrupted())) throw Error(ErrorKind::run, "stdin", std::strerror(errno));
  }
}

std::string read_text_file(const std::string& path) {
  std::FILE* f = std::fopen(path.c_str(), "rb");
  if (!f) throw Error(ErrorKind::run, escaped(path), std::strerror(errno));
  std::string text;
  char buffer[1 << 16];
  size_t n;
  while ((n = std::fread(buffer, 1, sizeof buffer, f)) > 0) text.append(buffer, n);
  const bool failed = std::ferror(f);
  const int error = errno;
  std::fclose(f);
  if (failed) throw Error(ErrorKind::run, escaped(path), std::strerror(error));
  return text;
}

}  // namespace infer::tools
