// quantize(): which tensor gets which format, what is in the file that comes out, what is refused, and that nothing is
// left behind.
#include <cmath>
#include <cstring>
#include <filesystem>

#include "infer.h"
#include "quant/encode.h"
#include "quant/formats.h"
#include "runtime/gguf.h"
#include "runtime/imatrix.h"
#include "runtime/quantize_plan.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/runtime/gguf_writer.h"
#include "tests/tiny_model.h"

using namespace infer;
using test::bytes_of;
using test::Folder;
using test::GgufWriter;
namespace fs = std::filesystem;

namespace {

// Names and shapes of a llama model; no weights.
Checkpoint shapes(int64_t n_layers, int64_t dim, bool tied = false, int64_t n_kv_heads = 8) {
  Checkpoint c;
  c.path = "shapes";
  c.metadata["general.architecture"] = {std::string("llama"), "string"};
  c.metadata["llama.block_count"] = {n_layers, "u32"};
  c.metadata["llama.attention.head_count"] = {int64_t{16}, "u32"};
  c.metadata["llama.attention.head_count_kv"] = {n_kv_heads, "u32"};
  const auto add = [&](const std::string& name, int64_t rows) {
    c.tensors.push_back(
        {name, rows > 1 ? DType::F16 : DType::F32, rows > 1 ? std::vector{rows, dim} : std::vector{dim}, nullptr, 0});
  };
  add("token_embd.weight", 512);
  for (int64_t i = 0; i < n_layers; ++i)
    for (const char* part :
         {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"})
      add("blk." + std::to_string(i) + "." + part + ".weight", std::string(part).ends_with("norm") ? 1 : 64);
  add("output_norm.weight", 1);
  if (!tied) add("output.weight", 512);
  c.index_tensors();
  return c;
}

std::map<std::string, std::string> formats(const Checkpoint& c, const std::string& type, QuantizeOptions options = {}) {
  const std::vector<TensorChoice> choices = choose_formats(c, find_mix(type), options);
  std::map<std::string, std::string> out;
  for (size_t i = 0; i < choices.size(); ++i) out[c.tensors[i].name] = find_format(choices[i].dtype)->name;
  return out;
}

// One letter or digit a layer: the format's digit.
std::string by_layer(const std::map<std::string, std::string>& of, const std::string& part, int n_layers) {
  std::string out;
  for (int i = 0; i < n_layers; ++i) out += of.at("blk." + std::to_string(i) + "." + part + ".weight").at(1);
  return out;
}

std::string row_of(std::vector<float> values) {
  std::string out(values.size() * sizeof(float), '\0');
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

// Two matrices, one of them a stack of two experts, and a vector.
GgufWriter small_model(float special = 0.25f) {
  GgufWriter file;
  file.text("general.architecture", "llama");
  file.number("llama.block_count", 1);
  file.number("general.file_type", 0);
  file.real("llama.rope.freq_base", 1e4f);
  file.texts("tokenizer.ggml.tokens", {"a", "b\xc3\xa9", ""});
  file.numbers<float>("some.floats", test::f32, {0.1f, -1e-20f});
  file.numbers<int8_t>("some.bytes", test::i8, {-1, 2});
  file.numbers<uint64_t>("some.large", test::u64, {1, UINT64_MAX});
  file.flag("some.flag", true);
  std::vector<float> values(4 * 2 * 256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i * i % 9973));
  values[700] = special;
  file.tensor("blk.0.attn_q.weight", DType::F32, {4, 256}, row_of({values.begin(), values.begin() + 1024}));
  file.tensor("blk.0.ffn_down_exps.weight", DType::F32, {2, 2, 256}, row_of({values.begin() + 1024, values.end()}));
  file.tensor("output_norm.weight", DType::F32, {64}, row_of(std::vector<float>(64, 1.0f)));
  return file;
}

GgufWriter small_imatrix(const std::string& name, int64_t experts, int64_t columns, float value = 1) {
  GgufWriter file;
  file.text("general.type", "imatrix");
  file.texts("imatrix.datasets", {"some.txt"});
  file.number("imatrix.chunk_count", 3);
  std::vector<float> sums(static_cast<size_t>(experts * columns));
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = value * static_cast<float>(1 + i % 7 * (i % 7));
  file.tensor(name + ".in_sum2", DType::F32, {experts, columns}, row_of(sums));
  file.tensor(name + ".counts", DType::F32, {experts, 1}, row_of(std::vector<float>(static_cast<size_t>(experts), 10)));
  return file;
}

QuantizeOptions as(const std::string& type) {
  QuantizeOptions options;
  options.type = type;
  return options;
}

ErrorKind kind_of(const std::string& in, const std::string& out, const QuantizeOptions& options,
                  const std::string& says) {
  try {
    quantize(in, out, options);
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(std::string(error.what()).find(says) != std::string::npos);
    return error.kind();
  }
  FAIL("no error");
  return ErrorKind::run;
}

}  // namespace

TEST_CASE("a mixture gives more bits to the tensors that llama.cpp gives them to") {
  const Checkpoint c = shapes(16, 256);
  const auto q4 = formats(c, "Q4_K_M");
  CHECK(by_layer(q4, "ffn_down", 16) == "6644644644644666");  // eighths at both ends, every third between
  CHECK(by_layer(q4, "attn_v", 16) == "6644644644644666");
  CHECK(by_layer(q4, "attn_q", 16) == "4444444444444444");
  CHECK(q4.at("output.weight") == "Q6_K");
  CHECK(q4.at("token_embd.weight") == "Q4_K");
  CHECK(q4.at("blk.3.attn_norm.weight") == "F32");
  CHECK(by_layer(formats(c, "q4_k_s"), "ffn_down", 16) == "5544444444444444");
  CHECK(by_layer(formats(c, "Q4_K_S"), "attn_v", 16) == "5555444444444444");
  CHECK(by_layer(formats(c, "Q3_K"), "ffn_down", 16) == "5444444444444444");
  CHECK(by_layer(formats(c, "Q3_K_M"), "attn_v", 16) == "5544444444444444");
  CHECK(by_layer(formats(c, "Q3_K_M"), "attn_output", 16) == "4444444444444444");
  CHECK(by_layer(formats(c, "Q3_K_L"), "ffn_down", 16) == "5555555555555555");
  CHECK(by_layer(formats(c, "Q2_K"), "attn_v", 16) == "3333333333333333");
  CHECK(by_layer(formats(shapes(16, 256, false, 4), "Q2_K"), "attn_v", 16) == "4444444444444444");  // grouped heads
  CHECK(formats(shapes(16, 256, true), "Q4_K_M").at("token_embd.weight") == "Q6_K");  // it is the head too
  CHECK(formats(shapes(16, 256, true), "Q8_0").at("token_embd.weight") == "Q8_0");
  CHECK(formats(c, "TQ2_0").at("token_embd.weight") == "Q4_K");
  CHECK(formats(c, "MXFP4_MOE").at("blk.0.attn_q.weight") == "Q8_0");
  CHECK(formats(c, "F16").at("blk.0.ffn_norm.weight") == "F32");
}

TEST_CASE("what the user asks for goes before the mixture") {
  const Checkpoint c = shapes(4, 256);
  QuantizeOptions options;
  options.tensor_types = {{"blk\\.[01]\\.ffn", "q8_0"}, {"ffn_down", "Q5_0"}};
  options.output_tensor_type = "f16";
  options.token_embedding_type = "q4_1";
  const auto of = formats(c, "Q4_K_M", options);
  CHECK(by_layer(of, "ffn_down", 4) == "8855");
  CHECK(of.at("output.weight") == "F16");
  CHECK(of.at("token_embd.weight") == "Q4_1");
  QuantizeOptions pure;
  pure.pure = true;
  CHECK(by_layer(formats(c, "Q4_K_M", pure), "ffn_down", 4) == "4444");
  CHECK(formats(c, "Q4_K_M", pure).at("output.weight") == "Q4_K");
  QuantizeOptions leave;
  leave.leave_output_tensor = true;
  CHECK(formats(c, "Q4_K_M", leave).at("output.weight") == "F16");
  for (const char* bad : {"q9_9", "iq2_xs", "i32", ""}) {
    QuantizeOptions wrong;
    wrong.tensor_types = {{"ffn", bad}};
    CHECK_THROWS_AS(formats(c, "Q4_0", wrong), Error);
  }
  QuantizeOptions malformed;
  malformed.tensor_types = {{"ffn(", "q8_0"}};
  CHECK_THROWS_AS(formats(c, "Q4_0", malformed), Error);
  for (const char* bad : {"q9", "IQ2_XS", "", "Q4_K_X"}) CHECK_THROWS_AS(find_mix(bad), Error);
}

TEST_CASE("rows that are no multiple of the block get the replacement that llama.cpp writes") {
  const std::pair<const char*, const char*> cases[] = {{"Q2_K", "Q4_0"},   {"Q3_K_S", "Q4_0"},   {"Q4_K_S", "Q5_0"},
                                                       {"Q5_K_S", "Q5_1"}, {"IQ4_XS", "IQ4_NL"}, {"Q6_K", "Q8_0"},
                                                       {"Q4_0", "Q4_0"}};
  for (const auto& [type, instead] : cases) {
    INFO(type);
    const Checkpoint c = shapes(16, 96), odd = shapes(16, 100);
    CHECK(formats(c, type).at("blk.8.attn_q.weight") == instead);
    CHECK(formats(c, type).at("output.weight") == "Q8_0");
    CHECK(formats(odd, type).at("blk.8.attn_q.weight") == "F16");
    const auto notes = choose_formats(odd, find_mix(type), {});
    CHECK(notes[1].note.empty());
    CHECK(notes[2].note.find("rows of 100 are no multiple of") == 0);
  }
}

TEST_CASE("the new file holds what the encoders make of each row, and all metadata") {
  const Folder folder;
  small_model().write(folder / "in.gguf");
  std::vector<std::string> seen;
  QuantizeOptions options = as("q4_k_m");
  options.on_tensor = [&](const QuantizedTensor& t) { seen.push_back(t.name + " " + t.to); };
  const QuantizeReport report = quantize(folder / "in.gguf", folder / "out.gguf", options);
  CHECK(seen == std::vector<std::string>{"blk.0.attn_q.weight Q4_K", "blk.0.ffn_down_exps.weight Q6_K",
                                         "output_norm.weight F32"});
  CHECK(folder.n_files() == 2);
  CHECK(report.file_bytes == fs::file_size(folder / "out.gguf"));

  const Checkpoint in = read_gguf(folder / "in.gguf"), out = read_gguf(folder / "out.gguf");
  REQUIRE(out.tensors.size() == in.tensors.size());
  for (size_t i = 0; i < in.tensors.size(); ++i) {
    const HostTensor &from = in.tensors[i], &to = out.tensors[i];
    INFO(from.name);
    CHECK(to.name == from.name);
    CHECK(to.dims == from.dims);
    std::vector<float> weights(static_cast<size_t>(from.n_elements()));
    REQUIRE(decode_row(from.dtype, from.data, weights.data(), from.n_elements()));
    std::vector<char> want(to.bytes);
    REQUIRE(encode_weights(to.dtype, weights.data(), nullptr, want.data(), from.n_elements()).fault == Encoded::none);
    CHECK(std::memcmp(want.data(), to.data, to.bytes) == 0);
  }
  CHECK(out.get_int("general.file_type", 0, 100) == 15);
  CHECK(out.get_int("general.quantization_version", 0, 100) == 2);
  for (const auto& [key, value] : in.metadata) {
    if (key == "general.file_type") continue;
    INFO(key);
    REQUIRE(out.has(key));
    CHECK(out.metadata.at(key).data == value.data);
    CHECK(out.metadata.at(key).type == value.type);
  }
}

TEST_CASE("the number of threads changes nothing, and a tiny model still runs") {
  const Folder folder;
  test::write_tiny_model(folder / "in.gguf");
  for (const int n : {1, 3}) {
    QuantizeOptions options = as("Q4_0");
    options.n_threads = n;
    quantize(folder / "in.gguf", folder / ("out" + std::to_string(n)), options);
  }
  CHECK(bytes_of(folder / "out1") == bytes_of(folder / "out3"));
  const Model model = Model::load(folder / "out1");
  CHECK(model.info().file_type == "Q4_0");
}

TEST_CASE("an importance matrix counts, also per expert, and one of another model is refused") {
  const Folder folder;
  small_model().write(folder / "in.gguf");
  small_imatrix("blk.0.ffn_down_exps.weight", 2, 256).write(folder / "good.gguf");
  quantize(folder / "in.gguf", folder / "plain.gguf", as("Q3_K_S"));
  QuantizeOptions options = as("Q3_K_S");
  options.imatrix = folder / "good.gguf";
  const QuantizeReport report = quantize(folder / "in.gguf", folder / "weighted.gguf", options);
  REQUIRE(report.notes.size() == 1);
  CHECK(report.notes[0].find("blk.0.attn_q.weight") != std::string::npos);
  const Checkpoint plain = read_gguf(folder / "plain.gguf"), weighted = read_gguf(folder / "weighted.gguf");
  CHECK(std::memcmp(plain.tensors[0].data, weighted.tensors[0].data, plain.tensors[0].bytes) == 0);
  CHECK(std::memcmp(plain.tensors[1].data, weighted.tensors[1].data, plain.tensors[1].bytes) != 0);
  CHECK(weighted.get_string("quantize.imatrix.dataset") == "some.txt");
  CHECK(weighted.get_int("quantize.imatrix.chunks_count", 0, 100) == 3);

  const auto refused = [&](const GgufWriter& file, const std::string& says) {
    file.write(folder / "bad.gguf");
    options.imatrix = folder / "bad.gguf";
    CHECK(kind_of(folder / "in.gguf", folder / "x.gguf", options, says) == ErrorKind::bad_file);
  };
  refused(small_imatrix("blk.0.ffn_down_exps.weight", 1, 256), "another model");
  refused(small_imatrix("blk.0.ffn_down_exps.weight", 2, 128), "another model");
  refused(small_imatrix("blk.9.ffn_up.weight", 2, 256), "knows none of the tensors");
  refused(small_imatrix("blk.0.ffn_down_exps.weight", 2, 256, NAN), "not an importance");
  refused(small_imatrix("blk.0.ffn_down_exps.weight", 2, 256, -1), "not an importance");
  refused(small_model(), "not an importance matrix");
  CHECK_FALSE(fs::exists(folder / "x.gguf"));
  CHECK(kind_of(folder / "in.gguf", folder / "x.gguf", as("Q2_K_S"), "needs an importance matrix") == ErrorKind::usage);
}

TEST_CASE("what cannot be written is refused by tensor, row and column, and nothing is left behind") {
  const Folder folder;
  small_model(NAN).write(folder / "nan.gguf");
  CHECK(kind_of(folder / "nan.gguf", folder / "x.gguf", as("Q4_K_M"), "blk.0.attn_q.weight, row 2, column 188") ==
        ErrorKind::bad_file);
  small_model(1e30f).write(folder / "large.gguf");
  CHECK(kind_of(folder / "large.gguf", folder / "x.gguf", as("Q8_0"), "too large for Q8_0") == ErrorKind::bad_file);
  CHECK(folder.n_files() == 2);

  small_model().write(folder / "in.gguf");
  QuantizeOptions cancelled = as("Q8_0");
  cancelled.progress = [](double) { return false; };
  CHECK(kind_of(folder / "in.gguf", folder / "x.gguf", cancelled, "cancelled") == ErrorKind::run);
  CHECK(kind_of(folder / "in.gguf", folder / "in.gguf", as("Q8_0"), "is the model itself") == ErrorKind::usage);
  CHECK(kind_of(folder / "in.gguf", folder / "none/x.gguf", as("Q8_0"), "No such file") == ErrorKind::run);
  CHECK(kind_of(folder / "in.gguf", folder / "", as("Q8_0"), "no regular file") == ErrorKind::run);
  CHECK(kind_of(folder / "in.gguf", folder / "x.gguf", as("IQ1_S"), "cannot be written") == ErrorKind::usage);
  QuantizeOptions dry = as("Q4_0");
  dry.dry_run = true;
  CHECK(quantize(folder / "in.gguf", "", dry).file_bytes > 0);
  CHECK(folder.n_files() == 3);
}

TEST_CASE("quantising while loading gives the model that the file would give") {
  const Folder folder;
  test::TinyModel tiny;
  tiny.weights = DType::F16;
  test::write_tiny_model(folder / "in.gguf", tiny);
  quantize(folder / "in.gguf", folder / "q4.gguf", as("Q4_K_M"));
  LoadOptions load;
  load.device = "cpu";
  const Model from_file = Model::load(folder / "q4.gguf", load);
  load.quant = "q4_k_m";
  for (const bool mmap : {true, false}) {
    load.mmap = mmap;
    const Model loaded = Model::load(folder / "in.gguf", load);
    CHECK(loaded.info().file_type == from_file.info().file_type);
    CHECK(loaded.info().stream_bytes == from_file.info().stream_bytes);
    const std::vector<TokenId> ids = {1, 2, 3, 4, 5};
    std::vector<float> got, want;
    Engine a(loaded), b(from_file);
    a.logits(ids, 0, [&](int64_t, std::span<const float> row) { got.insert(got.end(), row.begin(), row.end()); });
    b.logits(ids, 0, [&](int64_t, std::span<const float> row) { want.insert(want.end(), row.begin(), row.end()); });
    CHECK((got == want));
  }
  load.quant = "q9";
  CHECK_THROWS_AS(Model::load(folder / "in.gguf", load), Error);
  load.quant = "q4_0";
  CHECK_THROWS_AS(Model::load(folder / "q4.gguf", load), Error);
  load.allow_requantize = true;
  CHECK(Model::load(folder / "q4.gguf", load).info().file_type == "Q4_0");
}

TEST_CASE("quantised weights are quantised again only when that is allowed") {
  const Folder folder;
  small_model().write(folder / "in.gguf");
  quantize(folder / "in.gguf", folder / "q8.gguf", as("Q8_0"));
  CHECK(kind_of(folder / "q8.gguf", folder / "x.gguf", as("Q4_0"), "--allow-requantize") == ErrorKind::usage);
  CHECK(kind_of(folder / "q8.gguf", folder / "x.gguf", as("F16"), "--allow-requantize") == ErrorKind::usage);
  quantize(folder / "q8.gguf", folder / "same.gguf", as("Q8_0"));  // nothing changes
  CHECK(bytes_of(folder / "same.gguf") == bytes_of(folder / "q8.gguf"));
  QuantizeOptions options = as("Q4_0");
  options.allow_requantize = true;
  quantize(folder / "q8.gguf", folder / "q4.gguf", options);
  CHECK(read_gguf(folder / "q4.gguf").tensors[0].dtype == DType::Q4_0);
}
