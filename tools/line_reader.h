// One message from the user: libedit with history at a terminal, plain lines from a pipe. Multi-line input by a
// trailing backslash or between lines of """.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace infer::tools {

class LineReader {
 public:
  LineReader();
  ~LineReader();
  /// nullopt at the end of input or when Ctrl-C was pressed (see interrupted()).
  std::optional<std::string> read_message();

 private:
  std::optional<std::string> read_line(const char* prompt);
  struct Editor;
  std::unique_ptr<Editor> editor_;  ///< null when stdin is not a terminal
};

}  // namespace infer::tools
