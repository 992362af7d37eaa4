#include "runtime/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "infer/error.h"
#include "runtime/mapped_file.h"

namespace infer {

OutputFile::OutputFile(const std::string& path, size_t bytes)
    : path_(path), temporary_(path + ".part-" + std::to_string(getpid())) {
  struct stat found = {};
  if (stat(path.c_str(), &found) == 0 && !S_ISREG(found.st_mode))
    throw Error(ErrorKind::run, shown_path(path), "exists and is no regular file");
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(errno);
  if (bytes > 0 && fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) != 0 &&
      (errno == ENOSPC || errno == EFBIG || errno == EDQUOT)) {
    const int error = errno;
    close(fd_);
    unlink(temporary_.c_str());
    fail(error);
  }
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void OutputFile::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, from, std::min<size_t>(bytes, size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(n < 0 ? errno : EIO);
    from += n;
    bytes -= static_cast<size_t>(n);
    position_ += static_cast<size_t>(n);
  }
}

void OutputFile::commit() {
  // Some file systems report a full disk only here.
  const int closed = close(fd_), error = errno;
  fd_ = -1;
  if (closed != 0) {
    unlink(temporary_.c_str());
    fail(error);
  }
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int why = errno;
    unlink(temporary_.c_str());
    fail(why);
  }
}

void OutputFile::fail(int error) const { throw Error(ErrorKind::run, shown_path(path_), std::strerror(error)); }

void require_another_file(const std::string& in, const std::string& out) {
  struct stat model = {}, target = {}, folder = {};
  if (stat(in.c_str(), &model) != 0 || stat(out.c_str(), &target) != 0) return;
  const auto same = [](const struct stat& a, const struct stat& b) {
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
  };
  const std::filesystem::path parent = std::filesystem::path(out).parent_path();
  const bool inside = stat(parent.empty() ? "." : parent.c_str(), &folder) == 0 && same(model, folder);
  // A model that is a folder is all of its files, but for what was made of it before.
  if (same(model, target) || (inside && !out.ends_with(".gguf")))
    throw Error(ErrorKind::usage, shown_path(out), "is the model itself; write to another file");
}

}  // namespace infer
