// What the program knows about its terminal: colours, a progress bar, Ctrl-C. Answers go to stdout, all else to stderr.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace infer::tools {

bool is_terminal(int fd);
/// Both go to one place, as with 2>&1.
bool same_output(int fd, int other);

/// Writes to stdout; false once that failed. The reason is kept for the end of the program, see output_error().
bool write_out(const std::string& text, bool flush = false);
void set_output_error(int error);
/// 0, or the errno of the first failed write to stdout.
int output_error();

/// Prints to stderr. Nobody reading there is no reason to fail.
template <class... T>
void note(fmt::format_string<T...> form, T&&... args) {
  const std::string text = fmt::format(form, std::forward<T>(args)...);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

/// An escape sequence when stderr is a terminal and NO_COLOR is unset, else "".
const char* colour(const char* sequence);
inline const char* green() { return colour("\033[32m"); }
inline const char* grey() { return colour("\033[90m"); }
inline const char* red() { return colour("\033[31m"); }
inline const char* plain() { return colour("\033[0m"); }

/// One line on stderr that redraws itself; appears only after a second and only on a terminal.
class ProgressBar {
 public:
  /// `with_eta`: also how long it will take, for what may take minutes.
  explicit ProgressBar(std::string label, bool with_eta = false);
  ~ProgressBar();
  void update(double fraction);
  /// Makes room for a line; the next update() draws the bar again.
  void clear();

 private:
  std::string label_;
  std::chrono::steady_clock::time_point start_;
  int shown_ = -1;
  bool drawn_ = false, enabled_, with_eta_;
};

/// Counts Ctrl-C. The second one while nothing has handled the first ends the program with status 130.
void install_interrupt_handler();
bool interrupted();
/// SIGTERM asks for what Ctrl-C asks for: to stop and tidy up. A limit on the size of files becomes an error.
void install_terminate_as_interrupt();
void clear_interrupt();

/// From here on, a mapped file that shrinks or cannot be read ends the program with a line that names `path`.
void explain_bus_error(const std::string& path);

/// Peak resident memory of this process in bytes.
size_t peak_memory();

/// "1.2 GB", decimal units.
std::string human_bytes(double bytes);

std::string read_all_stdin();
/// Throws Error(run) with the system's words.
std::string read_text_file(const std::string& path);

}  // namespace infer::tools
