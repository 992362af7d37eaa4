// A file that gets its name when it is complete: written beside it under a temporary one, which goes away with the
// object if commit() was never reached. Knows nothing of contents.
#pragma once

#include <cstddef>
#include <string>

namespace infer {

class OutputFile {
 public:
  /// Takes `bytes` of the disk at once where the file system can, so that a full one is found out now. Throws
  /// Error(run) with the system's words, as all members do.
  OutputFile(const std::string& path, size_t bytes);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, size_t bytes);
  size_t position() const { return position_; }
  void commit();

 private:
  [[noreturn]] void fail(int error) const;

  std::string path_, temporary_;
  int fd_ = -1;
  size_t position_ = 0;
};

/// Throws Error(usage) when `out` is the file that the model at `in` lies in, by whatever name.
void require_another_file(const std::string& in, const std::string& out);

}  // namespace infer
