// collect_imatrix(): the sums against a forward pass written out by hand, the file and who reads it, going on and
// merging, what is refused, and that nothing is lost.
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "infer.h"
#include "runtime/gguf.h"
#include "runtime/imatrix.h"
#include "runtime/imatrix_file.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/naive_llama.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::bytes_of;
using test::Folder;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kChunk = 24;

std::string text_of(int n) {
  static const char* const words[] = {"hello", "the", "world", "of", "model", "x7", "and", "you", "in", "q"};
  std::string out;
  for (int i = 0; i < n; ++i) out += std::string(words[(i * i + 3 * i) % 10]) + " ";
  return out;
}

Model open(const std::string& path, const std::string& device = "cpu") {
  LoadOptions load;
  load.device = device;
  return Model::load(path, load);
}

ImatrixOptions small() {
  ImatrixOptions o;
  o.n_ctx = kChunk;
  o.n_ubatch = 10;  // a chunk is three steps, the last one shorter
  return o;
}

/// Sums over two chunks by hand; the first token of each is BOS.
ImatrixFile by_hand(const std::string& path, const std::string& text, int64_t n_chunks) {
  const Checkpoint file = read_gguf(path);
  const Model model = open(path);
  const std::vector<TokenId> ids = model.tokenize(text, true, false), bos = model.tokenize("", true, false);
  ImatrixFile out;
  for (int64_t c = 0; c < n_chunks; ++c) {
    std::vector<TokenId> chunk(ids.begin() + c * kChunk, ids.begin() + (c + 1) * kChunk);
    if (!bos.empty()) chunk[0] = bos[0];
    for (const auto& [name, rows] : test::naive_llama_inputs(file, chunk)) {
      ImatrixFile::Entry& entry = out.entries[name];
      entry.sums.resize(rows[0].size());
      entry.counts.resize(1);
      for (const auto& row : rows)
        for (size_t i = 0; i < row.size(); ++i) entry.sums[i] += row[i] * row[i];
      entry.counts[0] += static_cast<double>(rows.size());
    }
  }
  return out;
}

std::set<std::string> names_of(const ImatrixFile& file) {
  std::set<std::string> out;
  for (const auto& [name, entry] : file.entries) out.insert(name);
  return out;
}

void check_close(const ImatrixFile& got, const ImatrixFile& want, double limit) {
  CHECK(names_of(got) == names_of(want));
  for (const auto& [name, entry] : want.entries) {
    INFO(name);
    const ImatrixFile::Entry& mine = got.entries.at(name);
    CHECK(mine.counts == entry.counts);
    REQUIRE(mine.sums.size() == entry.sums.size());
    double worst = 0;
    for (size_t i = 0; i < entry.sums.size(); ++i)
      worst = std::max(worst, std::abs(mine.sums[i] - entry.sums[i]) / entry.sums[i]);
    CHECK(worst < limit);
  }
}

std::string refused(const std::function<void()>& call, ErrorKind kind) {
  try {
    call();
  } catch (const Error& e) {
    CHECK(e.kind() == kind);
    return e.what();
  }
  FAIL("nothing was thrown");
  return {};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("imatrix: the sums are those of a forward pass by hand, on every backend") {
  const Folder folder;
  const bool with_bos = GENERATE(true, false);
  test::TinyModel tiny;
  tiny.spm = with_bos;
  test::write_tiny_model(folder / "m.gguf", tiny);
  const std::string text = text_of(60);
  ImatrixFile want = by_hand(folder / "m.gguf", text, 2);
  // On the CPU the cache is f16 and activations are rounded for the products, which the later inputs show.
  const std::pair<const char*, double> devices[] = {{"ref", 1e-5}, {"cpu", 1e-2}};
  for (const auto& [device, limit] : devices) {
    INFO(device << (with_bos ? " with BOS" : ""));
    ImatrixOptions options = small();
    options.n_chunks = 2;
    options.process_output = true;
    const ImatrixReport report = collect_imatrix(open(folder / "m.gguf", device), text, folder / "out.gguf", options);
    CHECK(report.n_chunks == 2);
    CHECK_FALSE(report.cancelled);
    check_close(read_imatrix(folder / "out.gguf"), want, limit);
  }
  want.entries.erase("output.weight");
  ImatrixOptions options = small();
  options.n_chunks = 2;
  collect_imatrix(open(folder / "m.gguf", "ref"), text, folder / "out.gguf", options);
  check_close(read_imatrix(folder / "out.gguf"), want, 1e-5);
}

TEST_CASE("imatrix: the file says what it is, and quantize() uses it") {
  const Folder folder;
  test::write_tiny_model(folder / "m.gguf");
  ImatrixOptions options = small();
  options.dataset = "some.txt";
  const ImatrixReport report = collect_imatrix(open(folder / "m.gguf"), text_of(200), folder / "i.gguf", options);
  const Checkpoint file = read_gguf(folder / "i.gguf");
  CHECK(file.get_string("general.type") == "imatrix");
  CHECK(file.find_strings("imatrix.datasets")->at(0) == "some.txt");
  CHECK(file.get_int("imatrix.chunk_count", 0, 1000) == report.n_chunks);
  CHECK(report.n_chunks > 4);
  CHECK(file.get_int("imatrix.chunk_size", 0, 1000) == kChunk);
  CHECK(file.metadata.at("imatrix.chunk_count").type == "u32");
  CHECK(file.find_tensor("blk.1.ffn_down.weight.in_sum2")->dims == std::vector<int64_t>{1, 128});
  CHECK(file.find_tensor("blk.1.ffn_down.weight.counts")->n_elements() == 1);
  CHECK(report.n_tensors == 14);
  CHECK(file.tensors.size() == 28);

  const ImatrixFile sums = read_imatrix(folder / "i.gguf");
  write_imatrix(sums, folder / "again.gguf");
  CHECK(bytes_of(folder / "again.gguf") == bytes_of(folder / "i.gguf"));
  const ImportanceMatrix means(folder / "i.gguf");
  HostTensor down;
  down.name = "blk.1.ffn_down.weight";
  down.dims = {64, 128};
  const ImatrixFile::Entry& entry = sums.entries.at(down.name);
  CHECK(means.find(down)->at(5) == static_cast<float>(entry.sums[5] / entry.counts[0]));
  CHECK(entry.counts[0] == static_cast<double>(report.n_chunks * kChunk));

  QuantizeOptions quant;
  quant.type = "Q4_0";
  quantize(folder / "m.gguf", folder / "plain.gguf", quant);
  quant.imatrix = folder / "i.gguf";
  for (const QuantizedTensor& t : quantize(folder / "m.gguf", folder / "weighted.gguf", quant).tensors)
    CHECK(t.has_importance == (t.name.find("blk.") == 0 && t.name.find("norm") == std::string::npos));
  CHECK(bytes_of(folder / "plain.gguf") != bytes_of(folder / "weighted.gguf"));
}

TEST_CASE("imatrix: going on and merging give the sums of one run") {
  const Folder folder;
  test::write_tiny_model(folder / "m.gguf");
  const Model model = open(folder / "m.gguf");
  const std::string text = text_of(120);
  ImatrixOptions options = small();
  options.n_chunks = 4;
  collect_imatrix(model, text, folder / "all.gguf", options);
  options.n_chunks = 1;
  options.dataset = "a";
  collect_imatrix(model, text, folder / "first.gguf", options);
  options.first_chunk = 1;
  options.n_chunks = 3;
  options.dataset = "b";
  collect_imatrix(model, text, folder / "rest.gguf", options);
  options.in_files = {folder / "first.gguf"};
  CHECK(collect_imatrix(model, text, folder / "on.gguf", options).all_chunks == 4);
  merge_imatrix({folder / "first.gguf", folder / "rest.gguf"}, folder / "merged.gguf");
  const ImatrixFile all = read_imatrix(folder / "all.gguf");
  for (const char* name : {"on.gguf", "merged.gguf"}) {
    const ImatrixFile got = read_imatrix(folder / name);
    check_close(got, all, 1e-6);
    CHECK(got.n_chunks == 4);
    CHECK(got.chunk_size == kChunk);
    CHECK(got.datasets == std::vector<std::string>{"a", "b"});
  }
}

TEST_CASE("imatrix: whoever stops a run loses nothing that had its name") {
  const Folder folder;
  test::write_tiny_model(folder / "m.gguf");
  const Model model = open(folder / "m.gguf");
  test::write_bytes(folder / "i.gguf", "mine");
  ImatrixOptions options = small();
  options.n_ubatch = kChunk;
  int left = 0;
  options.progress = [&](double) { return --left > 0; };
  left = 3;  // before the first time that it writes
  ImatrixReport report = collect_imatrix(model, text_of(200), folder / "i.gguf", options);
  CHECK(report.cancelled);
  CHECK(report.n_chunks == 0);
  CHECK(bytes_of(folder / "i.gguf") == "mine");
  options.save_every = 2;
  left = 5;
  report = collect_imatrix(model, text_of(200), folder / "i.gguf", options);
  CHECK(report.cancelled);
  CHECK(report.n_chunks == 5);
  CHECK(read_imatrix(folder / "i.gguf").n_chunks == 5);
  options.n_ubatch = 10;  // in the middle of the sixth chunk, whose sums are not in the file
  left = 5 * 3 + 1;
  report = collect_imatrix(model, text_of(200), folder / "i.gguf", options);
  CHECK(report.n_chunks == 4);
  CHECK(read_imatrix(folder / "i.gguf").entries.at("blk.0.attn_q.weight").counts[0] == 4 * kChunk);
  CHECK(folder.n_files() == 2);
}

TEST_CASE("imatrix: what cannot be measured is refused, and nothing is written") {
  const Folder folder;
  test::write_tiny_model(folder / "m.gguf");
  test::TinyModel wide;
  wide.dim = 128;
  test::write_tiny_model(folder / "wide.gguf", wide);
  const Model model = open(folder / "m.gguf");
  ImatrixOptions options = small();
  collect_imatrix(open(folder / "wide.gguf"), text_of(40), folder / "wide.imatrix", options);
  const auto call = [&] { collect_imatrix(model, text_of(30), folder / "x.gguf", options); };
  options.n_ctx = 512;
  CHECK(contains(refused(call, ErrorKind::usage), "shorter than one chunk"));
  options = small();
  options.first_chunk = 1000;
  CHECK(contains(refused(call, ErrorKind::usage), "no such chunk"));
  options = small();
  options.n_ctx = 7;
  CHECK(contains(refused(call, ErrorKind::usage), "n_ctx"));
  options = small();
  options.n_chunks = 0;
  CHECK(contains(refused(call, ErrorKind::usage), "n_chunks"));
  options = small();
  options.in_files = {folder / "wide.imatrix"};
  CHECK(contains(refused(call, ErrorKind::bad_file), "another model"));
  options.in_files = {folder / "m.gguf"};
  CHECK(contains(refused(call, ErrorKind::bad_file), "not an importance matrix"));
  CHECK(contains(refused([&] { merge_imatrix({}, folder / "x.gguf"); }, ErrorKind::usage), "nothing to merge"));
  options = small();
  CHECK(contains(refused([&] { collect_imatrix(model, text_of(30), folder / "none/x.gguf", options); }, ErrorKind::run),
                 "No such file"));
  test::GgufWriter broken = test::tiny_model();
  std::string& weights = broken.find_tensor("blk.0.attn_v.weight").data;
  weights.replace(0, 4, test::le(std::numeric_limits<float>::infinity()));
  broken.write(folder / "broken.gguf");
  const auto collect_broken = [&] {
    collect_imatrix(open(folder / "broken.gguf"), text_of(30), folder / "x.gguf", options);
  };
  CHECK(contains(refused(collect_broken, ErrorKind::run), "not finite"));
  CHECK_FALSE(fs::exists(folder / "x.gguf"));
}
