// Files whose bytes are read instead of mapped where that is quicker.
#include "runtime/mapped_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "infer/error.h"
#include "models/arch.h"
#include "models/stack.h"
#include "runtime/gguf.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/ref_double.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

std::string write_file(const test::Folder& folder, const std::string& name, size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) text += static_cast<char>(i * 7 % 251);
  const std::string path = folder / name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

/// Holds copies of all weights, as a device does.
class Copies final : public test::RefDouble {
 public:
  std::optional<size_t> memory_left() const override { return size_t{1} << 30; }
  size_t packed_bytes(const Tensor& host, WeightRole) const override { return host_bytes(host); }
  Tensor pack(const Tensor& host, WeightRole, void* dst) const override {
    std::memcpy(dst, host.data, host_bytes(host));
    Tensor copy = host;
    copy.data = dst;
    return copy;
  }
};

}  // namespace

TEST_CASE("bytes of a file are the same read and mapped") {
  const test::Folder folder;
  const std::string path = write_file(folder, "a", 100000);
  for (const bool map : {true, false}) {
    const MappedFile file(path, map);
    REQUIRE(file.mapped() == map);
    for (const auto& [begin, n] : {std::pair<size_t, size_t>{0, 100000}, {4095, 2}, {99999, 1}, {77, 0}}) {
      std::vector<std::byte> some(n);
      file.read(begin, some);
      CHECK(same(some, file.bytes().subspan(begin, n)));
    }
  }
}

TEST_CASE("a file that has become shorter is an error, where its mapped pages would be a signal") {
  const test::Folder folder;
  const std::string path = write_file(folder, "a", 100000);
  const MappedFile file(path);
  std::filesystem::resize_file(path, 50000);
  std::vector<std::byte> some(1000);
  file.read(49000, some);
  CHECK_THROWS_WITH(file.read(49001, some), Catch::Contains("became shorter while it was read"));
}

TEST_CASE("a reader finds the file by the address and leaves alone what lies elsewhere") {
  const test::Folder folder;
  const auto files = std::make_shared<MappedFiles>();
  for (const auto& [name, map] : {std::pair{"a", true}, {"b", true}, {"copied", false}})
    files->push_back(std::make_shared<const MappedFile>(write_file(folder, name, 5000), map));
  const auto read = reader_of(files);
  std::vector<std::byte> some(1000);
  for (const auto& file : *files) {
    some.assign(some.size(), std::byte{0});
    CHECK(read(file->data() + 4000, some) == file->mapped());
    CHECK(same(some, file->bytes().subspan(4000, 1000)) == file->mapped());
    CHECK_FALSE(read(file->data() + 4001, some));  // beyond the end
  }
  const std::vector<std::byte> elsewhere(1000);
  CHECK_FALSE(read(elsewhere.data(), some));
}

TEST_CASE("weights on their way to a device are read, and a model file that has become shorter is an error") {
  const test::Folder folder;
  const std::string path = folder / "tiny.gguf";
  test::write_tiny_model(path);
  const Checkpoint checkpoint = read_gguf(path, {});
  REQUIRE(checkpoint.read);
  const auto ref = make_backend("ref");
  Copies device;
  const Config config = read_config(checkpoint);
  const Weights mapped = load_weights(checkpoint, config, *ref, 2, false, nullptr),
                read = load_weights(checkpoint, config, device, 2, false, nullptr);
  REQUIRE(read.matrices.size() == mapped.matrices.size());
  for (size_t i = 0; i < read.matrices.size(); ++i) {
    const Tensor &a = read.matrices[i].w, &b = mapped.matrices[i].w;
    CHECK(a.data != b.data);
    CHECK(std::memcmp(a.data, b.data, host_bytes(b)) == 0);
  }
  std::filesystem::resize_file(path, 8192);
  CHECK_THROWS_WITH(load_weights(checkpoint, config, device, 2, false, nullptr), Catch::Contains("became shorter"));
}
