// The bytes of one regular file, read-only: mapped, or read into memory (--no-mmap). Knows nothing about formats,
// except for guess_contents(), which names a file that is not what its reader expected ("a git-lfs pointer"). A mapped
// file must not shrink while it is used: the kernel then raises SIGBUS, and a library installs no signal handlers.
// Programs that cannot rely on that read the file into memory.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace infer {

class MappedFile {
 public:
  /// Throws Error: `run` when the path cannot be opened, read or mapped (with the system's words), `bad_file` when it
  /// is no regular file or empty, `does_not_fit` when memory for a copy is not to be had.
  explicit MappedFile(const std::string& path, bool map = true);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  bool mapped() const { return mapped_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// Copies bytes() from `begin` on by reading the file: whoever wants each byte once is spared the mapping of its
  /// pages. Throws Error `run` where the file no longer has them. Thread-safe.
  void read(size_t begin, std::span<std::byte> to) const;

 private:
  void open(bool map);
  void read_all();
  void close() noexcept;

  std::string path_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;  ///< while the file is mapped
  bool mapped_ = false;
};

using MappedFiles = std::vector<std::shared_ptr<const MappedFile>>;

/// Copies bytes that lie at `from` in one of these files, as MappedFile::read() does; false if `from` is elsewhere, or
/// in a file that is not mapped.
std::function<bool(const std::byte* from, std::span<std::byte> to)> reader_of(std::shared_ptr<const MappedFiles> files);

/// `path` as messages print it: escaped, never cut in practice.
std::string shown_path(const std::string& path);

/// What these bytes look like, for the message of a reader that refuses them: "a git-lfs pointer, not the file itself",
/// or the first bytes, escaped, when nothing is recognised.
std::string guess_contents(std::span<const std::byte> bytes);

}  // namespace infer
