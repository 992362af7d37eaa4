// See storage.h.
#include "tools/storage.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr size_t kBlock = size_t{8} << 20;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  bool good() const { return fd_ >= 0; }
  size_t size() const {
    struct stat status = {};
    return fstat(fd_, &status) == 0 && S_ISREG(status.st_mode) ? static_cast<size_t>(status.st_size) : 0;
  }

 private:
  int fd_;
};

Descriptor open_for_reading(const std::string& path, int more = 0) {
  return Descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | more));
}

// "name-00001-of-00003.gguf", where the parts lie beside one another; else just `path`.
std::vector<std::string> parts_of(const std::string& path) {
  constexpr size_t kTail = 20;  // "-00001-of-00003.gguf"
  std::vector<std::string> out = {path};
  if (path.size() <= kTail) return out;
  const std::string stem = path.substr(0, path.size() - kTail), tail = path.substr(path.size() - kTail);
  const std::string number = tail.substr(1, 5), count = tail.substr(10, 5);
  const auto digits = [](const std::string& t) { return t.find_first_not_of("0123456789") == t.npos; };
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || !tail.ends_with(".gguf") || !digits(number) || !digits(count))
    return out;
  out.clear();
  for (int i = 1; i <= std::atoi(count.c_str()); ++i) {
    std::string part = fmt::format("{}-{:05}-of-{}.gguf", stem, i, count);
    if (access(part.c_str(), R_OK) == 0) out.push_back(std::move(part));
  }
  return out;
}

}  // namespace

std::vector<std::string> model_files(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return parts_of(path);
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(path, error))
    if (entry.path().extension() == ".safetensors") out.push_back(entry.path().string());
  std::sort(out.begin(), out.end());
  return out;
}

std::optional<double> cached_share(const std::string& path) {
  const Descriptor file = open_for_reading(path);
  const size_t bytes = file.good() ? file.size() : 0;
  if (bytes == 0) return std::nullopt;
  void* const map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (map == MAP_FAILED) return std::nullopt;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((bytes + page - 1) / page);
  const bool told = mincore(map, bytes, pages.data()) == 0;
  munmap(map, bytes);
  if (!told) return std::nullopt;
  const auto n = std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return p & 1; });
  return static_cast<double>(n) / static_cast<double>(pages.size());
}

void drop_from_cache(const std::string& path) {
  const Descriptor file = open_for_reading(path);
  if (!file.good()) return;
  if (fdatasync(file.get()) != 0) return;  // pages that are not on the disk yet stay
  posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
}

void read_into_cache(const std::string& path) {
  const Descriptor file = open_for_reading(path);
  const std::unique_ptr<char[]> block(new char[kBlock]);
  while (file.good() && !interrupted() && read(file.get(), block.get(), kBlock) > 0) continue;
}

double measure_page_cache(double seconds) {
  constexpr size_t kBytes = size_t{128} << 20;
  const Descriptor file(memfd_create("infer", MFD_CLOEXEC));
  const std::unique_ptr<char[]> block(new char[kBlock]);
  std::fill_n(block.get(), kBlock, 1);
  for (size_t at = 0; file.good() && at < kBytes; at += kBlock)
    if (pwrite(file.get(), block.get(), kBlock, static_cast<off_t>(at)) != static_cast<ssize_t>(kBlock)) return 0;
  if (!file.good()) return 0;
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    for (size_t at = 0; at < kBytes; at += kBlock)
      if (pread(file.get(), block.get(), kBlock, static_cast<off_t>(at)) != static_cast<ssize_t>(kBlock)) return best;
    best = std::max(best, static_cast<double>(kBytes) / since(start) / 1e9);
  } while (since(begin) < seconds);
  return best;
}

std::optional<double> measure_disk(const std::string& path, double seconds) {
  constexpr size_t kMost = size_t{1} << 30;
  const Descriptor file = open_for_reading(path, O_DIRECT);
  if (!file.good()) return std::nullopt;
  const std::unique_ptr<void, void (*)(void*)> block(std::aligned_alloc(4096, kBlock), std::free);
  size_t total = 0;
  const auto start = Clock::now();
  while (block && total < kMost && since(start) < seconds) {
    const ssize_t n = pread(file.get(), block.get(), kBlock, static_cast<off_t>(total));
    if (n <= 0) break;
    total += static_cast<size_t>(n);
    if (n % 4096 != 0) break;  // the end
  }
  if (total == 0) return std::nullopt;
  return static_cast<double>(total) / since(start) / 1e9;
}

}  // namespace infer::tools
