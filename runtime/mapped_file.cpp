// Opening, mapping and reading of one file, and the guess at what a wrong file is.
#include "runtime/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>

#include "infer/error.h"

namespace infer {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

[[noreturn]] void fail(const std::string& path, const std::string& action, int error) {
  throw Error(ErrorKind::run, shown_path(path), action + ": " + std::generic_category().message(error));
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

std::string shown_path(const std::string& path) { return escaped(path, 8192); }

MappedFile::MappedFile(const std::string& path, bool map) : path_(path) {
  if (path.find('\0') != std::string::npos) fail(path, "cannot open", ENOENT);
  // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail(path, "cannot open", errno);
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) fail(path, "cannot examine", errno);
  if (!S_ISREG(info.st_mode))
    throw Error(ErrorKind::bad_file, shown_path(path), "not a file", kind_of(info.st_mode), "a regular file");
  if (info.st_size <= 0) throw Error(ErrorKind::bad_file, shown_path(path), "the file is empty");
  size_ = static_cast<size_t>(info.st_size);

  if (!map) {
    read_all(file.fd);
    return;
  }
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.fd, 0);
  if (address == MAP_FAILED) fail(path, "cannot map", errno);
  data_ = static_cast<std::byte*>(address);
  mapped_ = true;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

void MappedFile::read_all(int fd) {
  // An anonymous mapping rather than the heap: page-aligned, in huge pages where the system has them, given back at
  // once.
  void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED)
    throw Error(ErrorKind::does_not_fit, shown_path(path_), "no memory for a copy of the file",
                std::to_string(size_) + " bytes");
  data_ = static_cast<std::byte*>(address);
  ::madvise(data_, size_, MADV_HUGEPAGE);
  try {
    constexpr size_t kChunk = size_t{1} << 26;
    for (size_t done = 0; done < size_;) {
      const ssize_t n = ::read(fd, data_ + done, std::min(kChunk, size_ - done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(path_, "cannot read", errno);
      if (n == 0)
        throw Error(ErrorKind::run, shown_path(path_), "the file became shorter while it was read",
                    std::to_string(done) + " bytes", std::to_string(size_) + " bytes");
      done += static_cast<size_t>(n);
    }
    ::mprotect(data_, size_, PROT_READ);
  } catch (...) {  // the destructor of a half-built object does not run
    ::munmap(data_, size_);
    throw;
  }
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
