// The GGUF reader on files that are right, on paths that are no files, and on split models.
#include "runtime/gguf.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include "kernels/checked.h"
#include "runtime/mapped_file.h"
#include "tests/catch.h"
#include "tests/runtime/gguf_writer.h"
#include "tests/tiny_model.h"

using namespace infer;
namespace fs = std::filesystem;
using test::GgufWriter;

namespace {

// A folder of its own for each test, removed afterwards.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "infer_gguf_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

Error refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e;
  }
  FAIL("nothing was refused");
  return Error(ErrorKind::run, "");
}

bool contains(const Error& error, const std::string& text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

std::string floats(std::initializer_list<float> values) {
  std::string out;
  for (const float v : values) out += test::le(v);
  return out;
}

// Keys of every type, and tensors of one to four dimensions.
GgufWriter sample() {
  using namespace infer::test;
  GgufWriter file;
  file.text("general.architecture", "sample");
  file.raw("t.u8", u8, "\xff");
  file.raw("t.i8", i8, "\xff");
  file.raw("t.u16", u16, le<uint16_t>(65535));
  file.raw("t.i16", i16, le<int16_t>(-2));
  file.raw("t.u32", u32, le<uint32_t>(4294967295u));
  file.raw("t.i32", i32, le<int32_t>(-3));
  file.raw("t.u64", u64, le<uint64_t>(77));
  file.raw("t.u64_wide", u64, le(~uint64_t{0}));
  file.raw("t.i64", i64, le<int64_t>(-4));
  file.raw("t.f32", f32, le(0.5f));
  file.raw("t.f64", f64, le(0.25));
  file.flag("t.bool", true);
  file.text("t.string", "gr\u00fc\u00df");
  file.numbers<uint16_t>("t.numbers", u16, {1, 2, 65535});
  file.numbers<uint64_t>("t.wide_numbers", u64, {1, ~uint64_t{0}});
  file.numbers<uint8_t>("t.bools", boolean, {0, 1});
  file.numbers<double>("t.floats", f64, {1.5});
  file.texts("t.texts", {"", "a", std::string("x\0y", 3)});
  file.tensor("one", DType::F32, {3}, floats({1, 2, 3}));
  file.tensor("two", DType::F32, {2, 3}, floats({1, 2, 3, 4, 5, 6}));
  file.tensor("four", DType::F16, {2, 1, 3, 5}, std::string(60, 'h'));
  return file;
}

}  // namespace

TEST_CASE("size arithmetic reports overflow and never wraps") {
  const uint64_t max = ~uint64_t{0};
  CHECK(checked_add(max, 0) == max);
  CHECK_FALSE(checked_add(max, 1).has_value());
  CHECK(checked_mul(uint64_t{1} << 32, (uint64_t{1} << 32) - 1) == max - 0xffffffffu);
  CHECK_FALSE(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32).has_value());
  CHECK(checked_mul(0, max) == uint64_t{0});
  CHECK(checked_align(33, 32) == uint64_t{64});
  CHECK(checked_align(64, 32) == uint64_t{64});
  CHECK_FALSE(checked_align(max - 5, 32).has_value());
  CHECK(checked_product(std::vector<int64_t>{2, 3, 4}) == 24);
  CHECK(checked_product({}) == 1);
  CHECK_FALSE(checked_product(std::vector<int64_t>{int64_t{1} << 32, int64_t{1} << 31}).has_value());
  CHECK_FALSE(checked_product(std::vector<int64_t>{2, -1}).has_value());
}

TEST_CASE("keys of every type are read, integers of any width alike") {
  const Folder folder;
  sample().write(folder / "a.gguf");
  const Checkpoint c = read_gguf(folder / "a.gguf");
  CHECK(c.format == "GGUF v3");
  CHECK(c.path == folder / "a.gguf");
  CHECK(c.file_bytes == fs::file_size(folder / "a.gguf"));
  CHECK(c.warnings.empty());
  const auto text = [&](const char* key) { return c.metadata.at(key).type + " " + c.metadata.at(key).text(); };
  CHECK(text("t.u8") == "u8 255");
  CHECK(text("t.i8") == "i8 -1");
  CHECK(text("t.u16") == "u16 65535");
  CHECK(text("t.i16") == "i16 -2");
  CHECK(text("t.u32") == "u32 4294967295");
  CHECK(text("t.i32") == "i32 -3");
  CHECK(text("t.u64_wide") == "u64 18446744073709551615");
  CHECK(text("t.i64") == "i64 -4");
  CHECK(text("t.f32") == "f32 0.5");
  CHECK(text("t.f64") == "f64 0.25");
  CHECK(text("t.bool") == "bool true");
  CHECK(text("t.string") == "string \"gr\u00fc\u00df\"");
  CHECK(text("t.numbers") == "array of u16 [1, 2, 65535]");
  CHECK(text("t.wide_numbers") == "array of u64 [1, 18446744073709551615]");
  CHECK(text("t.bools") == "array of bool [false, true]");
  CHECK(text("t.floats") == "array of f64 [1.5]");
  CHECK(c.get_int("t.u64", 0, 100) == 77);
  CHECK(c.find_strings("t.texts", 3)->at(2) == std::string("x\0y", 3));
}

TEST_CASE("tensors have their rows first and lie in the mapped file") {
  const Folder folder;
  sample().write(folder / "a.gguf");
  for (const bool map : {true, false}) {
    GgufOptions options;
    options.mmap = map;
    Checkpoint c = read_gguf(folder / "a.gguf", options);
    CHECK(c.mapped == map);
    REQUIRE(c.tensors.size() == 3);
    CHECK(c.find_tensor("two")->dims == std::vector<int64_t>{2, 3});
    CHECK(c.find_tensor("four")->dims == std::vector<int64_t>{2, 1, 3, 5});
    CHECK(c.find_tensor("four")->dtype == DType::F16);
    CHECK(c.find_tensor("four")->bytes == 60);
    const Checkpoint moved = std::move(c);  // the bytes belong to `storage`
    float last;
    std::memcpy(&last, moved.find_tensor("two")->data + 20, 4);
    CHECK(last == 6.0f);
  }
}

TEST_CASE("version 2, every alignment and tensors in any order are read") {
  const Folder folder;
  GgufWriter file = sample();
  file.version = 2;
  file.write(folder / "v2.gguf");
  CHECK(read_gguf(folder / "v2.gguf").format == "GGUF v2");
  for (const uint32_t alignment : {8u, 64u, 4096u, 65536u}) {
    file = sample();
    file.set_alignment(alignment);
    file.write(folder / "aligned.gguf");
    const Checkpoint c = read_gguf(folder / "aligned.gguf");
    CHECK(std::memcmp(c.find_tensor("one")->data, floats({1, 2, 3}).data(), 12) == 0);
    CHECK(c.find_tensor("four")->data[59] == std::byte{'h'});
  }
  // Entries in another order than their data.
  const test::GgufImage good = sample().image();
  std::string bytes = good.patched("tensor one offset", uint64_t{32});
  bytes.replace(good.at("tensor two offset"), 8, test::le(uint64_t{0}));
  test::write_bytes(folder / "order.gguf", bytes);
  CHECK(read_gguf(folder / "order.gguf").find_tensor("two")->data < read_gguf(folder / "order.gguf").tensors[2].data);
}

TEST_CASE("types that nothing computes with are still read, for listings") {
  const Folder folder;
  GgufWriter file = sample();
  file.tensor("iq2", DType::IQ2_XS, {3, 256}, std::string(3 * 74, '\0'));
  file.tensor("f64", DType::F64, {2}, std::string(16, '\0'));
  file.write(folder / "a.gguf");
  const Checkpoint c = read_gguf(folder / "a.gguf");
  CHECK(c.find_tensor("iq2")->dtype == DType::IQ2_XS);
  CHECK(c.find_tensor("iq2")->bytes == 3 * 74);
}

TEST_CASE("bytes after the last tensor are one warning with their number, padding is none") {
  const Folder folder;
  const test::GgufImage good = sample().image();
  const auto warnings = [&](const std::string& bytes) {
    test::write_bytes(folder / "a.gguf", bytes);
    return read_gguf(folder / "a.gguf").warnings;
  };
  CHECK(warnings(good.bytes).empty());
  CHECK(warnings(good.bytes.substr(0, good.at("tensor four end"))).empty());
  CHECK(warnings(good.bytes.substr(0, good.at("tensor four end") + 1)).empty());
  const std::vector<std::string> one = warnings(good.bytes + "x");
  REQUIRE(one.size() == 1);
  CHECK(one[0] == folder / "a.gguf" + ": 1 byte after the last tensor, ignored");
  CHECK(warnings(good.bytes + std::string(1 << 20, '\0')).at(0).find("1048576 bytes") != std::string::npos);
  CHECK(warnings(good.bytes.substr(0, good.at("tensor four end")) + "PK\5\6").at(0).find(": 4 bytes") !=
        std::string::npos);
  GgufWriter keys_only = sample();
  keys_only.tensors.clear();
  CHECK(warnings(keys_only.bytes()).empty());
  CHECK(warnings(keys_only.bytes() + "zip").at(0).find(": 3 bytes") != std::string::npos);
}

TEST_CASE("overrides replace and add keys, and malformed ones are the caller's error") {
  const Folder folder;
  sample().write(folder / "a.gguf");
  GgufOptions options;
  options.overrides = {
      {"t.u8", "int", "-12"}, {"new.f", "float", "1e3"}, {"new.b", "bool", "false"}, {"t.i8", "str", "a=b:c"}};
  const Checkpoint c = read_gguf(folder / "a.gguf", options);
  CHECK(c.get_int("t.u8", -100, 100) == -12);
  CHECK(c.get_float("new.f", 0, 1e6) == 1000);
  CHECK(c.find_bool("new.b") == false);
  CHECK(c.get_string("t.i8") == "a=b:c");
  for (const auto& [type, value] : std::vector<std::pair<std::string, std::string>>{{"int", "1x"},
                                                                                    {"int", ""},
                                                                                    {"int", "9223372036854775808"},
                                                                                    {"float", "nan"},
                                                                                    {"float", "1e999"},
                                                                                    {"bool", "1"},
                                                                                    {"u32", "1"},
                                                                                    {"", ""}}) {
    options.overrides = {{"k", type, value}};
    const Error e = refusal([&] { read_gguf(folder / "a.gguf", options); });
    CHECK(e.kind() == ErrorKind::usage);
    CHECK(contains(e, "--override-kv k"));
  }
}

TEST_CASE("metadata alone is read without tensors or siblings, but the file is checked") {
  const Folder folder;
  GgufWriter file = sample();
  file.raw("split.count", test::u16, test::le<uint16_t>(3));
  file.write(folder / "part-00001-of-00003.gguf");
  GgufOptions options;
  options.metadata_only = true;
  const Checkpoint c = read_gguf(folder / "part-00001-of-00003.gguf", options);
  CHECK(c.get_string("t.string") == "gr\u00fc\u00df");
  CHECK(c.tensors.empty());
  CHECK(c.find_tensor("one") == nullptr);
  fs::resize_file(folder / "part-00001-of-00003.gguf", fs::file_size(folder / "part-00001-of-00003.gguf") - 33);
  CHECK(refusal([&] { read_gguf(folder / "part-00001-of-00003.gguf", options); }).kind() == ErrorKind::bad_file);
}

TEST_CASE("paths that are no regular files are refused by what they are") {
  const Folder folder;
  const auto at = [&](const std::string& path) { return refusal([&] { read_gguf(path); }); };
  CHECK(contains(at(folder.path.string()), "directory"));
  CHECK(contains(at("/dev/null"), "device"));
  CHECK(contains(at(folder / "missing.gguf"), "No such file"));
  CHECK(at(folder / "missing.gguf").kind() == ErrorKind::run);
  CHECK(contains(at(std::string("a\0b", 3)), "a\\x00b"));
  fs::create_symlink(folder / "missing.gguf", folder / "dangling.gguf");
  CHECK(contains(at(folder / "dangling.gguf"), "dangling.gguf"));
  fs::create_symlink(folder / "self.gguf", folder / "self.gguf");
  CHECK(contains(at(folder / "self.gguf"), "symbolic link"));
  REQUIRE(::mkfifo((folder / "pipe.gguf").c_str(), 0600) == 0);
  CHECK(contains(at(folder / "pipe.gguf"), "a pipe"));  // and opening it does not wait for a writer
  test::write_bytes(folder / "empty.gguf", "");
  CHECK(contains(at(folder / "empty.gguf"), "empty"));
  sample().write(folder / "secret.gguf");
  fs::permissions(folder / "secret.gguf", fs::perms::none);
  if (::geteuid() != 0) CHECK(contains(at(folder / "secret.gguf"), "Permission denied"));
}

TEST_CASE("odd file names are read, and printed escaped") {
  const Folder folder;
  for (const std::string name :
       {"with space.gguf", "percent %n%s.gguf", "gr\u00fcn \u6a21\u578b.gguf", "\xff\xfe.gguf", "-m.gguf"}) {
    sample().write(folder / name);
    CHECK(read_gguf(folder / name).tensors.size() == 3);
  }
  test::write_bytes(folder / "a\nb\x1b[2J.gguf", "not a model");
  const Error e = refusal([&] { read_gguf(folder / "a\nb\x1b[2J.gguf"); });
  CHECK(contains(e, "a\\x0ab\\x1b[2J.gguf"));
  for (const char c : std::string(e.what())) CHECK(static_cast<unsigned char>(c) >= 32);
}

TEST_CASE("a file is recognised by its first bytes") {
  const Folder folder;
  sample().write(folder / "a.gguf");
  test::write_bytes(folder / "b.gguf", "GGU");
  CHECK(looks_like_gguf(folder / "a.gguf"));
  CHECK_FALSE(looks_like_gguf(folder / "b.gguf"));
  CHECK_FALSE(looks_like_gguf(folder / "missing"));
  CHECK_FALSE(looks_like_gguf(folder.path.string()));
}

TEST_CASE("a copy of the file in memory does not change when the file does") {
  const Folder folder;
  sample().write(folder / "a.gguf");
  GgufOptions options;
  options.mmap = false;
  const Checkpoint c = read_gguf(folder / "a.gguf", options);
  fs::resize_file(folder / "a.gguf", 4);
  CHECK(std::memcmp(c.find_tensor("one")->data, floats({1, 2, 3}).data(), 12) == 0);
}

namespace {

// A model of three parts: keys and one tensor in the first, one tensor in each of the others.
struct Split {
  Folder folder;
  GgufWriter parts[3];
  Split() {
    parts[0] = sample();
    parts[0].tensors.resize(1);
    parts[1].tensor("second", DType::F32, {1}, floats({2}));
    parts[2].tensor("third", DType::F32, {1}, floats({3}));
    for (uint16_t i = 0; i < 3; ++i) {
      parts[i].raw("split.no", test::u16, test::le(i));
      parts[i].raw("split.count", test::u16, test::le<uint16_t>(3));
      parts[i].raw("split.tensors.count", test::i32, test::le<int32_t>(3));
    }
  }
  std::string name(int i) const { return folder / ("model v1-0000" + std::to_string(i + 1) + "-of-00003.gguf"); }
  void write() const {
    for (int i = 0; i < 3; ++i) parts[i].write(name(i));
  }
};

}  // namespace

TEST_CASE("the first part of a split model brings its siblings") {
  const Split split;
  split.write();
  const Checkpoint c = read_gguf(split.name(0));
  REQUIRE(c.tensors.size() == 3);
  float third;
  std::memcpy(&third, c.find_tensor("third")->data, 4);
  CHECK(third == 3.0f);
  CHECK(c.file_bytes == fs::file_size(split.name(0)) + fs::file_size(split.name(1)) + fs::file_size(split.name(2)));
}

TEST_CASE("a split model that does not fit together is refused by the part that is wrong") {
  Split split;
  const auto refused = [&](const std::string& expect, ErrorKind kind = ErrorKind::bad_file) {
    split.write();
    const Error e = refusal([&] { read_gguf(split.name(0)); });
    INFO(e.what());
    CHECK(e.kind() == kind);
    CHECK(contains(e, expect));
  };
  SECTION("another part than the first is opened") {
    split.write();
    CHECK(contains(refusal([&] { read_gguf(split.name(1)); }), "not the first part"));
  }
  SECTION("a sibling is missing") {
    split.write();
    fs::remove(split.name(2));
    const Error e = refusal([&] { read_gguf(split.name(0)); });
    CHECK(contains(e, "00003-of-00003.gguf: cannot open: No such file"));
  }
  SECTION("the file was renamed") {
    split.write();
    fs::rename(split.name(0), split.folder / "renamed.gguf");
    CHECK(contains(refusal([&] { read_gguf(split.folder / "renamed.gguf"); }), "-00001-of-00003.gguf"));
  }
  SECTION("two parts have changed places") {
    std::swap(split.parts[1], split.parts[2]);
    refused("split.no");
  }
  SECTION("a sibling counts its parts differently") {
    split.parts[1].raw("split.count", test::u16, test::le<uint16_t>(4));
    refused("split.count");
  }
  SECTION("a sibling says something else about the model") {
    split.parts[2].text("t.string", "other");
    refused("00003-of-00003.gguf: t.string");
  }
  SECTION("a sibling says something the first part does not") {
    split.parts[2].text("t.unheard", "other");
    refused("t.unheard");
  }
  SECTION("a sibling has another vocabulary") {
    split.parts[1].texts("t.texts", {"x"});
    refused("t.texts");
  }
  SECTION("a tensor lies in two parts") {
    split.parts[2].tensors[0].name = "second";
    refused("second");
  }
  SECTION("the number of tensors is wrong") {
    split.parts[0].raw("split.tensors.count", test::i32, test::le<int32_t>(4));
    split.parts[1].remove("split.tensors.count");
    split.parts[2].remove("split.tensors.count");
    refused("split.tensors.count");
  }
  SECTION("a sibling is cut off") {
    split.write();
    fs::resize_file(split.name(1), fs::file_size(split.name(1)) - 32);
    CHECK(contains(refusal([&] { read_gguf(split.name(0)); }), "second"));
  }
  SECTION("a sibling is no GGUF file") {
    split.write();
    test::write_bytes(split.name(1), "<html>");
    CHECK(contains(refusal([&] { read_gguf(split.name(0)); }), "HTML"));
  }
}

TEST_CASE("the tiny model stores the same numbers in every type") {
  const Folder folder;
  test::TinyModel model;
  test::write_tiny_model(folder / "f32.gguf", model);
  model.weights = DType::Q8_0;
  test::write_tiny_model(folder / "q8.gguf", model);
  const Checkpoint f32 = read_gguf(folder / "f32.gguf"), q8 = read_gguf(folder / "q8.gguf");
  REQUIRE(f32.tensors.size() == q8.tensors.size());
  CHECK(q8.find_tensor("output.weight")->dtype == DType::Q8_0);
  float x;
  std::memcpy(&x, f32.find_tensor("output.weight")->data + 4 * 5, 4);
  const auto code = static_cast<int8_t>(q8.find_tensor("output.weight")->data[2 + 5]);
  CHECK(x == static_cast<float>(code) / 256);
}

TEST_CASE("real files of the shared data are read without a warning") {
  size_t n = 0;
  const fs::path folder = fs::path(SHARED_DATA) / "golden" / "models";
  if (fs::exists(folder))
    for (const auto& entry : fs::directory_iterator(folder))
      if (fs::exists(entry.path() / "model.gguf")) {
        const Checkpoint c = read_gguf((entry.path() / "model.gguf").string());
        INFO(c.path);
        CHECK(c.warnings.empty());
        CHECK_FALSE(c.tensors.empty());
        CHECK(c.has("general.architecture"));
        ++n;
      }
  if (n == 0) WARN("no shared data");
}
