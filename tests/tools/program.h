// Runs the built program as a person or a script would: through pipes with limits, or at a pseudo-terminal. Knows the
// program's name and nothing of its sources.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/sanitized.h"
#include "tests/tiny_model.h"

namespace infer::test {

/// How a call went. `status` is 0 to 255, or -N when signal N ended it; kTimedOut when it had to be killed.
constexpr int kTimedOut = -1000;
struct Outcome {
  int status = kTimedOut;
  std::string out, err;
  std::vector<std::string> writes;  ///< `out` in the pieces in which it was written
  double cpu_seconds = 0;           ///< which a busy machine stretches less than time on the wall
};

struct Call {
  std::vector<std::string> args;
  std::string input;                     ///< stdin: a pipe that holds this
  std::vector<std::string> environment;  ///< "NAME=value", added to a small clean one
  double timeout_seconds = 30;
  size_t memory_bytes = 0;  ///< of address space; 0: no limit, as always under AddressSanitizer
  size_t stack_bytes = 0;   ///< of every thread; 0: as usual
  size_t read_at_most = 0;  ///< of stdout, which is then closed; 0: all
  size_t interrupt_at = 0;  ///< bytes of stdout after which SIGINT is sent; 0: never
  std::string directory;    ///< to run in
  std::string stdout_file;  ///< instead of a pipe
};

Outcome run(const Call& call);
inline Outcome run(std::vector<std::string> args) {
  Call call;
  call.args = std::move(args);
  return run(call);
}

/// The program at a terminal of 100 columns: stdin and stderr are the terminal, stdout too unless it is captured.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& args, bool capture_stdout = false,
                    const std::vector<std::string>& environment = {});
  ~Terminal();
  Terminal(const Terminal&) = delete;
  void type(const std::string& keys);
  /// Waits until the screen shows `text` after what earlier waits have found; false after the timeout.
  bool shows(const std::string& text, double timeout_seconds = 20);
  /// Waits for the prompt, and until the program takes single keys: before that Ctrl-D and backspace are the
  /// terminal's.
  bool prompts(double timeout_seconds = 20);
  /// Waits for the end; the status as in Outcome.
  int ends(double timeout_seconds = 20);
  const std::string& screen() const { return screen_; }   ///< everything that was printed
  const std::string& answers() const { return stdout_; }  ///< what was captured of stdout

 private:
  bool read_some(double seconds);
  int terminal_ = -1, pipe_ = -1, pid_ = -1;
  std::string screen_, stdout_;
  size_t seen_ = 0;
};

/// What `body` prints on stderr when it runs in a process of its own at a terminal.
std::string printed_at_terminal(const std::function<void()>& body);

/// A folder that lives as long as the test program, and files in it.
const std::string& folder();
std::string path_in_folder(const std::string& name);
std::string write_file(const std::string& name, const std::string& bytes);
std::string read_file(const std::string& path);

/// Paths of tiny models, written on first use.
const std::string& tiny_bpe();  ///< byte-level BPE, ChatML
const std::string& tiny_spm();  ///< sentencepiece, byte tokens
const std::string& tiny_without_template();
const std::string& tiny_long();  ///< with a context that takes minutes to fill

/// A call that is refused with one line on stderr that holds `says`, and with this status.
struct Refusal {
  std::vector<std::string> args;
  int status;
  const char* says;
};
/// Checks that they are, and that none of them leaves a file called `never`.
void check_refusals(const std::vector<Refusal>& refusals, const std::string& never);

std::vector<std::string> lines_of(const std::string& text);
/// The cells of a row of a Markdown table, without the spaces around them.
std::vector<std::string> cells_of(const std::string& row);
/// Some thousand tokens of words that the tiny models know.
std::string long_text();
bool contains(const std::string& text, const std::string& part);
bool is_utf8(const std::string& text);

}  // namespace infer::test
