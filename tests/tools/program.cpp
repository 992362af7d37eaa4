// Processes, pipes and a pseudo-terminal; see program.h.
#include "tests/tools/program.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "tests/catch.h"

namespace infer::test {
namespace {

namespace fs = std::filesystem;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Pipe {
  int read_end = -1, write_end = -1;
  /// In packets: what one write puts in, one read takes out, never more.
  explicit Pipe(bool in_packets = false) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | (in_packets ? O_DIRECT : 0)) != 0) throw std::runtime_error("pipe");
    read_end = ends[0], write_end = ends[1];
  }
  ~Pipe() { close_read(), close_write(); }
  void close_read() {
    if (read_end >= 0) ::close(read_end);
    read_end = -1;
  }
  void close_write() {
    if (write_end >= 0) ::close(write_end);
    write_end = -1;
  }
};

// What execve() wants, made before: the child may not allocate.
struct Vectors {
  std::vector<std::string> words, settings;
  std::vector<char*> argv, envp;
  Vectors(const std::vector<std::string>& args, const std::vector<std::string>& environment) : words(args) {
    words.insert(words.begin(), INFER_PROGRAM);
    // No GPU: what is tested here is the program, alike on every machine.
    settings = {"PATH=/usr/bin:/bin", "HOME=" + folder(), "LANG=C.UTF-8", "TERM=xterm", "CUDA_VISIBLE_DEVICES="};
    settings.insert(settings.end(), environment.begin(), environment.end());
    for (std::string& w : words) argv.push_back(w.data());
    for (std::string& s : settings) envp.push_back(s.data());
    argv.push_back(nullptr), envp.push_back(nullptr);
  }
};

[[noreturn]] void become_program(Vectors& v, size_t memory_bytes, size_t stack_bytes) {
  if (memory_bytes && !kSanitized) {
    const rlimit limit = {memory_bytes, memory_bytes};
    setrlimit(RLIMIT_AS, &limit);
  }
  if (stack_bytes && !kSanitized) {
    const rlimit limit = {stack_bytes, stack_bytes};
    setrlimit(RLIMIT_STACK, &limit);
  }
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  signal(SIGPIPE, SIG_DFL), signal(SIGINT, SIG_DFL);
  execve(v.argv[0], v.argv.data(), v.envp.data());
  _exit(127);
}

int status_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status); }

// Feeds stdin and empties stdout and stderr until both are closed or time is up.
class Exchange {
 public:
  Exchange(const Call& call, int pid, Pipe& in, Pipe& out, Pipe& err, Outcome& o)
      : call_(call), pid_(pid), in_(in), out_(out), err_(err), o_(o), start_(now()) {
    fcntl(in.write_end, F_SETFL, O_NONBLOCK);
    if (call.input.empty()) in.close_write();
  }

  bool finish() {
    while (out_.read_end >= 0 || err_.read_end >= 0) {
      if (now() - start_ > call_.timeout_seconds) return false;
      if (call_.interrupt_at && !interrupted_ && o_.out.size() >= call_.interrupt_at)
        interrupted_ = kill(pid_, SIGINT) == 0;
      pollfd fds[3] = {{out_.read_end, POLLIN, 0}, {err_.read_end, POLLIN, 0}, {in_.write_end, POLLOUT, 0}};
      poll(fds, 3, 10);
      if (fds[0].revents) take(out_, o_.out, true);
      if (fds[1].revents) take(err_, o_.err, false);
      if (fds[2].revents) feed();
    }
    return true;
  }

 private:
  void take(Pipe& p, std::string& to, bool is_stdout) {
    static char buffer[1 << 16];
    const ssize_t n = read(p.read_end, buffer, sizeof buffer);
    if (n <= 0) return p.close_read();
    to.append(buffer, static_cast<size_t>(n));
    if (!is_stdout) return;
    o_.writes.emplace_back(buffer, static_cast<size_t>(n));
    if (call_.read_at_most && to.size() >= call_.read_at_most) p.close_read();
  }

  void feed() {
    const ssize_t n = write(in_.write_end, call_.input.data() + fed_, call_.input.size() - fed_);
    if (n > 0) fed_ += static_cast<size_t>(n);
    if (fed_ == call_.input.size() || (n < 0 && errno != EAGAIN)) in_.close_write();
  }

  const Call& call_;
  int pid_;
  Pipe &in_, &out_, &err_;
  Outcome& o_;
  double start_;
  size_t fed_ = 0;
  bool interrupted_ = false;
};

}  // namespace

Outcome run(const Call& call) {
  signal(SIGPIPE, SIG_IGN);  // a program that does not read its input must not end the tests
  Outcome o;
  Pipe in, out(true), err;
  Vectors v(call.args, call.environment);
  // Not fork(): copying the page tables of a test that holds a corpus takes longer than the program runs.
  const int pid = vfork();
  if (pid < 0) throw std::runtime_error("vfork");
  if (pid == 0) {
    int stdout_fd = out.write_end;
    if (!call.stdout_file.empty()) stdout_fd = open(call.stdout_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(in.read_end, 0), dup2(stdout_fd, 1), dup2(err.write_end, 2);
    if (!call.directory.empty() && chdir(call.directory.c_str()) != 0) _exit(126);
    become_program(v, call.memory_bytes, call.stack_bytes);
  }
  in.close_read(), out.close_write(), err.close_write();
  const bool done = Exchange(call, pid, in, out, err, o).finish();
  if (!done) kill(pid, SIGKILL);
  int status = 0;
  rusage used = {};
  wait4(pid, &status, 0, &used);
  o.status = done ? status_of(status) : kTimedOut;
  for (const timeval& t : {used.ru_utime, used.ru_stime})
    o.cpu_seconds += static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  return o;
}

Terminal::Terminal(const std::vector<std::string>& args, bool capture_stdout,
                   const std::vector<std::string>& environment) {
  Vectors v(args, environment);
  Pipe out;
  winsize size = {};
  size.ws_col = 100, size.ws_row = 40;
  pid_ = forkpty(&terminal_, nullptr, nullptr, &size);
  if (pid_ < 0) throw std::runtime_error("forkpty");
  if (pid_ == 0) {
    if (capture_stdout) dup2(out.write_end, 1);
    become_program(v, 0, 0);
  }
  if (capture_stdout) pipe_ = dup(out.read_end);
}

Terminal::~Terminal() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (pipe_ >= 0) ::close(pipe_);
  ::close(terminal_);
}

void Terminal::type(const std::string& keys) {
  if (write(terminal_, keys.data(), keys.size()) != static_cast<ssize_t>(keys.size()))
    throw std::runtime_error("the terminal takes no keys");
}

// False when nothing came, or the program has gone.
bool Terminal::read_some(double seconds) {
  pollfd fds[2] = {{terminal_, POLLIN, 0}, {pipe_, POLLIN, 0}};
  if (poll(fds, 2, static_cast<int>(seconds * 1000)) <= 0) return false;
  char buffer[4096];
  bool got = false;
  for (int i = 0; i < 2; ++i) {
    if (!fds[i].revents) continue;
    const ssize_t n = read(fds[i].fd, buffer, sizeof buffer);
    if (n > 0) (i == 0 ? screen_ : stdout_).append(buffer, static_cast<size_t>(n)), got = true;
    if (n <= 0 && i == 1) ::close(pipe_), pipe_ = -1, got = true;
  }
  return got;
}

bool Terminal::shows(const std::string& text, double timeout_seconds) {
  const double until = now() + timeout_seconds;
  while (true) {
    const size_t at = screen_.find(text, seen_);
    if (at != std::string::npos) return seen_ = at + text.size(), true;
    if (now() > until) return false;
    if (!read_some(0.05)) {
      siginfo_t info = {};
      waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
      if (info.si_pid == pid_ && !read_some(0.05)) return false;
    }
  }
}

bool Terminal::prompts(double timeout_seconds) {
  const double until = now() + timeout_seconds;
  if (!shows("> ", timeout_seconds)) return false;
  termios state = {};
  while (tcgetattr(terminal_, &state) == 0 && (state.c_lflag & ICANON) && now() < until) read_some(0.005);
  return !(state.c_lflag & ICANON);
}

int Terminal::ends(double timeout_seconds) {
  const double until = now() + timeout_seconds;
  int status = 0;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (now() > until) return kTimedOut;
    read_some(0.02);
  }
  pid_ = -1;
  while (read_some(0.05)) {
  }
  return status_of(status);
}

std::string printed_at_terminal(const std::function<void()>& body) {
  int terminal = -1;
  const int pid = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (pid < 0) throw std::runtime_error("forkpty");
  if (pid == 0) {
    body();
    std::fflush(stderr);  // and not what the test program has yet to print
    _exit(0);
  }
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(terminal, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  ::close(terminal);
  waitpid(pid, nullptr, 0);
  return text;
}

const std::string& folder() {
  struct Folder {
    std::string path = (fs::temp_directory_path() / "infer_tools_XXXXXX").string();
    Folder() {
      if (!mkdtemp(path.data())) throw std::runtime_error("mkdtemp");
    }
    ~Folder() { fs::remove_all(path); }
  };
  static const Folder one;
  return one.path;
}

std::string path_in_folder(const std::string& name) { return folder() + "/" + name; }

std::string write_file(const std::string& name, const std::string& bytes) {
  const std::string path = path_in_folder(name);
  write_bytes(path, bytes);
  return path;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

namespace {
std::string made(const std::string& name, bool spm, bool chat_template, int64_t context = 512) {
  TinyModel model;
  model.context = context;
  model.spm = spm;
  model.chat_template = chat_template;
  const std::string path = path_in_folder(name);
  write_tiny_model(path, model);
  return path;
}
}  // namespace

const std::string& tiny_bpe() {
  static const std::string path = made("bpe.gguf", false, true);
  return path;
}

const std::string& tiny_spm() {
  static const std::string path = made("spm.gguf", true, true);
  return path;
}

const std::string& tiny_without_template() {
  static const std::string path = made("plain.gguf", false, false);
  return path;
}

const std::string& tiny_long() {
  static const std::string path = made("long.gguf", false, true, 1 << 17);
  return path;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

std::vector<std::string> cells_of(const std::string& row) {
  std::vector<std::string> out;
  for (size_t at = 1, end; (end = row.find('|', at)) != std::string::npos; at = end + 1) {
    std::string cell = row.substr(at, end - at);
    cell.erase(0, cell.find_first_not_of(' '));
    cell.erase(cell.find_last_not_of(' ') + 1);
    out.push_back(cell);
  }
  return out;
}

std::string long_text() {
  std::string text;
  for (int i = 0; i < 400; ++i) text += i % 3 ? " hello world" : "\nthe model is you and";
  return text;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

bool is_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t n = c < 0x80                ? 1
                     : c >= 0xC2 && c < 0xE0 ? 2
                     : c >= 0xE0 && c < 0xF0 ? 3
                     : c >= 0xF0 && c < 0xF5 ? 4
                                             : 0;
    if (n == 0 || i + n > text.size()) return false;
    for (size_t k = 1; k < n; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return false;
    i += n;
  }
  return true;
}

void check_refusals(const std::vector<Refusal>& refusals, const std::string& never) {
  for (const Refusal& refusal : refusals) {
    const Outcome o = run(refusal.args);
    INFO(o.err);
    CHECK(o.status == refusal.status);
    CHECK(lines_of(o.err).size() == 1);
    CHECK(contains(o.err, refusal.says));
    CHECK_FALSE(std::filesystem::exists(never));
  }
}

}  // namespace infer::test
