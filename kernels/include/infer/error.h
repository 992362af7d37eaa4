// The one exception type of the project. It lives at the bottom so that every layer can throw it; the public header
// (runtime/include/infer.h) includes it, and programs that embed infer need not include it themselves.
// An error says what went wrong, where (file, key, tensor, flag), what was found and what is allowed, and it carries
// the kind from which the command line derives its exit status.
#pragma once

#include <stdexcept>
#include <string>

namespace infer {

/// What went wrong, as far as a caller can react to it. The value is the exit status of the command line.
enum class ErrorKind : int {
  run = 1,           ///< a run failed: unreadable path, non-finite result, device fault, template that raised
  usage = 2,         ///< the caller's request is wrong: unknown option, value out of range
  bad_file = 3,      ///< a model file is malformed or not supported
  does_not_fit = 4,  ///< the model or the requested context does not fit into memory
  gate = 5,          ///< a quality or regression gate failed
};

/// Text fit for one line of a terminal: bytes below 32, 127 and invalid UTF-8 become \xNN, and more than `max_bytes`
/// are cut with "...". Everything that comes out of a file is printed through this.
std::string escaped(const std::string& text, size_t max_bytes = 120);

/// The exception of every infer API. what() is one line: "where: message, found X, allowed Y".
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

  /// `where` is a file, key, tensor or option; `found` and `allowed` may be empty. They are stored and printed as
  /// given: pass text from files through escaped().
  Error(ErrorKind kind, std::string where, const std::string& message, std::string found = {},
        std::string allowed = {});

  ErrorKind kind() const { return kind_; }
  const std::string& where() const { return where_; }
  const std::string& found() const { return found_; }
  const std::string& allowed() const { return allowed_; }

 private:
  ErrorKind kind_;
  std::string where_, found_, allowed_;
};

}  // namespace infer
