// The reader against every malformed file of the corpus and against truncation at every boundary: always an Error that
// names the file, never a crash, and never memory or time out of proportion.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <filesystem>
#include <set>

#include "models/arch.h"
#include "models/weights.h"
#include "runtime/gguf.h"
#include "runtime/tokenizer.h"
#include "tests/catch.h"
#include "tests/runtime/gguf_corpus.h"
#include "tests/sanitized.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::kSanitized;
namespace fs = std::filesystem;

namespace {

// Made once: that takes as long as reading them.
const std::vector<test::MutatedFile>& corpus() {
  static const std::vector<test::MutatedFile> files = test::mutated_gguf_files();
  return files;
}

struct TemporaryFile {
  std::string path;
  TemporaryFile() : path((fs::temp_directory_path() / "infer_mutation_XXXXXX").string()) {
    const int fd = ::mkstemp(path.data());
    REQUIRE(fd >= 0);
    ::close(fd);
  }
  ~TemporaryFile() { fs::remove(path); }
};

size_t address_space_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long pages = 0;
  const int n = file ? std::fscanf(file, "%lu", &pages) : 0;
  if (file) std::fclose(file);
  REQUIRE(n == 1);
  return pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

long peak_kib() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

// Of this process, on which other processes have less influence than on the time that passes.
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// While it lives, this process gets no more than `bytes` of further address space: a reservation for a claimed size
// fails even when nothing touches it.
class AddressSpaceLimit {
 public:
  explicit AddressSpaceLimit(size_t bytes) {
    ::getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    limit.rlim_cur = address_space_bytes() + bytes;
    if (!kSanitized) REQUIRE(::setrlimit(RLIMIT_AS, &limit) == 0);
  }
  ~AddressSpaceLimit() { ::setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

struct Outcome {
  bool refused = false;
  std::string message;
};

Outcome read(const std::string& path, bool map) {
  GgufOptions options;
  options.mmap = map;
  try {
    const Checkpoint checkpoint = read_gguf(path, options);
    unsigned sum = 0;  // the last byte of each tensor is there
    for (const HostTensor& t : checkpoint.tensors) sum += static_cast<unsigned>(t.data[t.bytes - 1]);
    return {false, std::to_string(sum)};
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::bad_file);
    return {true, e.what()};
  }
}

bool is_one_clean_line(const std::string& text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 32 || c == 127) return false;
  return text.size() < 1000;
}

}  // namespace

TEST_CASE("every malformed file is refused by name, every valid one is read") {
  const std::vector<test::MutatedFile>& files = corpus();
  REQUIRE(files.size() >= 300);
  const TemporaryFile file;
  const long before_kib = peak_kib();
  const AddressSpaceLimit limit(size_t{256} << 20);
  std::set<std::string> names;
  for (const test::MutatedFile& mutated : files) {
    INFO(mutated.name);
    CHECK(names.insert(mutated.name).second);
    test::write_bytes(file.path, mutated.bytes);
    const double start = cpu_seconds();
    const Outcome outcome = read(file.path, names.size() % 2 == 0);
    const double seconds = cpu_seconds() - start;
    INFO(outcome.message);
    CHECK(outcome.refused == (mutated.must_refuse && !mutated.needs_config));
    if (outcome.refused) {
      CHECK(outcome.message.find(file.path) != std::string::npos);
      CHECK(outcome.message.find(mutated.expect) != std::string::npos);
      CHECK(is_one_clean_line(outcome.message));
    }
    CHECK(seconds < (kSanitized ? 20 : 2));
  }
  CHECK(peak_kib() - before_kib < 256 * 1024);
}

TEST_CASE("what the reader takes but means nothing is refused by config, weights or vocabulary") {
  const TemporaryFile file;
  for (const test::MutatedFile& mutated : corpus()) {
    if (mutated.must_refuse && !mutated.needs_config) continue;
    test::write_bytes(file.path, mutated.bytes);
    INFO(mutated.name);
    std::string message;
    try {
      const Checkpoint checkpoint = read_gguf(file.path);
      const Config config = read_config(checkpoint);
      Weights weights;
      const std::vector<BoundTensor> bound = bind_weights(checkpoint, config, weights);
      CHECK(bound.size() > 10);
      auto vocabulary = vocabulary_from(checkpoint);
      REQUIRE(vocabulary.has_value());
      const Tokenizer tokenizer(*std::move(vocabulary));
      if (tokenizer.n_tokens() > config.vocab) message = file.path;  // whoever joins the two refuses that
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::bad_file);
      message = e.what();
      CHECK(message.find(mutated.expect) != std::string::npos);
      CHECK(is_one_clean_line(message));
    }
    INFO(message);
    CHECK(mutated.must_refuse == (message.find(file.path) != std::string::npos));
  }
}

TEST_CASE("a file cut at any boundary, or a byte beside it, is refused") {
  test::TinyModel model;
  model.dim = 32;
  model.n_heads = 2;
  model.n_kv_heads = 1;
  model.ffn_dim = 32;
  const test::GgufImage image = test::tiny_model(model).image();
  const size_t end = image.at("tensor output.weight end");
  std::set<size_t, std::greater<>> cuts;
  for (const auto& [mark, at] : image.marks)
    for (const size_t cut : {at - 1, at, at + 1})
      if (cut > 0 && cut < end) cuts.insert(cut);
  for (size_t i = 1; i < 64; ++i) cuts.insert(i);
  REQUIRE(cuts.size() > 300);
  const TemporaryFile file;
  test::write_bytes(file.path, image.bytes);
  CHECK_FALSE(read(file.path, true).refused);
  for (const size_t cut : cuts) {  // from the longest to the shortest, so that one file is enough
    INFO("cut to " << cut << " bytes");
    fs::resize_file(file.path, cut);
    const Outcome outcome = read(file.path, true);
    CHECK(outcome.refused);
    CHECK(outcome.message.find(file.path) != std::string::npos);
  }
}

TEST_CASE("a file with any one byte of its head changed is read or refused, never worse") {
  test::TinyModel model;
  model.dim = 32;
  model.n_heads = 2;
  model.n_kv_heads = 1;
  model.ffn_dim = 32;
  model.chat_template = false;
  const test::GgufImage image = test::tiny_model(model).image();
  const TemporaryFile file;
  uint32_t random = 1;
  for (size_t at = 0; at < image.at("data"); at += 1 + (random >> 3) % 13) {
    std::string bytes = image.bytes;
    random = random * 1664525u + 1013904223u;
    bytes[at] = static_cast<char>(bytes[at] ^ (1u << (random >> 29)));
    test::write_bytes(file.path, bytes);
    INFO("byte " << at);
    const Outcome outcome = read(file.path, true);
    if (outcome.refused) CHECK(outcome.message.find(file.path) != std::string::npos);
  }
}

TEST_CASE("a vocabulary of 260,000 strings is read at once") {
  test::GgufWriter writer;
  std::vector<std::string> words;
  for (int i = 0; i < 260000; ++i) words.push_back("a word of the vocabulary " + std::to_string(i));
  writer.texts("tokenizer.ggml.tokens", words);
  writer.numbers<float>("tokenizer.ggml.scores", test::f32, std::vector<float>(words.size(), 0.5f));
  const TemporaryFile file;
  writer.write(file.path);
  const double start = cpu_seconds();
  const Checkpoint checkpoint = read_gguf(file.path);
  const double seconds = cpu_seconds() - start;
  CHECK(checkpoint.find_strings("tokenizer.ggml.tokens", 260000)->back() == words.back());
  CHECK(seconds < 10);  // quadratic would be minutes
}
