// Opening, mapping and reading of one file, and the guess at what a wrong file is.
#include "runtime/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

#include "infer/error.h"

namespace infer {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& action, int error) {
  throw Error(ErrorKind::run, shown_path(path), action + ": " + std::generic_category().message(error));
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// All of `to` from `begin` on.
void read_fully(int fd, size_t begin, std::span<std::byte> to, const std::string& path) {
  constexpr size_t kChunk = size_t{1} << 26;
  for (size_t done = 0; done < to.size();) {
    const ssize_t n =
        ::pread(fd, to.data() + done, std::min(kChunk, to.size() - done), static_cast<off_t>(begin + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path, "cannot read", errno);
    if (n == 0)
      throw Error(ErrorKind::run, shown_path(path), "the file became shorter while it was read",
                  std::to_string(begin + done) + " bytes", std::to_string(begin + to.size()) + " bytes");
    done += static_cast<size_t>(n);
  }
}

}  // namespace

std::string shown_path(const std::string& path) { return escaped(path, 8192); }

MappedFile::MappedFile(const std::string& path, bool map) : path_(path) {
  if (path.find('\0') != std::string::npos) fail(path, "cannot open", ENOENT);
  try {
    open(map);
  } catch (...) {  // the destructor of a half-built object does not run
    close();
    throw;
  }
}

void MappedFile::open(bool map) {
  // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) fail(path_, "cannot open", errno);
  struct stat info {};
  if (::fstat(fd_, &info) != 0) fail(path_, "cannot examine", errno);
  if (!S_ISREG(info.st_mode))
    throw Error(ErrorKind::bad_file, shown_path(path_), "not a file", kind_of(info.st_mode), "a regular file");
  if (info.st_size <= 0) throw Error(ErrorKind::bad_file, shown_path(path_), "the file is empty");
  size_ = static_cast<size_t>(info.st_size);

  if (!map) {
    read_all();
    ::close(std::exchange(fd_, -1));
    return;
  }
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_, 0);
  if (address == MAP_FAILED) fail(path_, "cannot map", errno);
  data_ = static_cast<std::byte*>(address);
  mapped_ = true;
}

MappedFile::~MappedFile() { close(); }

void MappedFile::close() noexcept {
  if (data_) ::munmap(data_, size_);
  if (fd_ >= 0) ::close(fd_);
}

void MappedFile::read(size_t begin, std::span<std::byte> to) const {
  if (fd_ < 0)
    std::copy_n(data_ + begin, to.size(), to.data());
  else
    read_fully(fd_, begin, to, path_);
}

void MappedFile::read_all() {
  // An anonymous mapping rather than the heap: page-aligned, in huge pages where the system has them, given back at
  // once.
  void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED)
    throw Error(ErrorKind::does_not_fit, shown_path(path_), "no memory for a copy of the file",
                std::to_string(size_) + " bytes");
  data_ = static_cast<std::byte*>(address);
  ::madvise(data_, size_, MADV_HUGEPAGE);
  read_fully(fd_, 0, {data_, size_}, path_);
  ::mprotect(data_, size_, PROT_READ);
}

std::function<bool(const std::byte*, std::span<std::byte>)> reader_of(std::shared_ptr<const MappedFiles> files) {
  return [files = std::move(files)](const std::byte* from, std::span<std::byte> to) {
    for (const auto& file : *files) {
      const auto begin = reinterpret_cast<uintptr_t>(from) - reinterpret_cast<uintptr_t>(file->data());
      if (begin > file->size() || file->size() - begin < to.size() || !file->mapped()) continue;
      file->read(begin, to);
      return true;
    }
    return false;
  };
}

std::string guess_contents(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 512));
  struct Signature {
    std::string_view start;
    const char* name;
  };
  using namespace std::string_view_literals;
  static constexpr std::array kSignatures{
      Signature{"GGUF"sv, "a GGUF file"},
      Signature{"version https://git-lfs"sv, "a git-lfs pointer, not the file itself (run: git lfs pull)"},
      Signature{"PK\x03\x04"sv, "a zip archive (PyTorch checkpoints are zip archives; convert them)"},
      Signature{"\x1f\x8b"sv, "a gzip archive; unpack it first"},
      Signature{"BZh"sv, "a bzip2 archive; unpack it first"},
      Signature{"\xfd"
                "7zXZ\0"sv,
                "an xz archive; unpack it first"},
      Signature{"\x28\xb5\x2f\xfd"sv, "a zstd archive; unpack it first"},
      Signature{"7z\xbc\xaf\x27\x1c"sv, "a 7z archive; unpack it first"},
      Signature{"\x80\x02"sv, "a Python pickle, which is never loaded"},
      Signature{"\x80\x03"sv, "a Python pickle, which is never loaded"},
      Signature{"\x80\x04"sv, "a Python pickle, which is never loaded"},
      Signature{"\x80\x05"sv, "a Python pickle, which is never loaded"},
      Signature{"lmgg"sv, "an old GGML file, older than GGUF; convert the original model again"},
      Signature{"fmgg"sv, "an old GGMF file, older than GGUF; convert the original model again"},
      Signature{"tjgg"sv, "an old GGJT file, older than GGUF; convert the original model again"},
      Signature{"algg"sv, "an old GGLA adapter"},
      Signature{"FUGG"sv, "a GGUF file with its magic bytes swapped"},
      Signature{"\x7f"
                "ELF"sv,
                "a program"},
      Signature{"\x89HDF"sv, "an HDF5 file"},
      Signature{"%PDF"sv, "a PDF document"},
      Signature{"#!"sv, "a script"},
      Signature{"<?xml"sv, "an XML document, perhaps an error page"},
  };
  for (const Signature& s : kSignatures)
    if (text.starts_with(s.start)) return s.name;

  std::string head(text);
  head.erase(0, head.find_first_not_of(" \t\r\n\xef\xbb\xbf"));
  std::transform(head.begin(), head.end(), head.begin(), [](unsigned char c) { return std::tolower(c); });
  if (head.starts_with("<!doctype html") || head.starts_with("<html") || head.starts_with("<head"))
    return "an HTML page, perhaps an error page instead of the download";
  if (text.size() > 9 && text[8] == '{' && text.substr(5, 3) == "\0\0\0"sv) return "a safetensors file";
  if (!head.empty() && (head[0] == '{' || head[0] == '[')) return "a JSON file";
  if (text.find_first_not_of('\0') == text.npos) return "zero bytes, perhaps an unfinished download";
  return '"' + escaped(std::string(text.substr(0, 16)), 64) + '"';
}

}  // namespace infer
