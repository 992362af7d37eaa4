// `infer quantize` as people call it.
#include <filesystem>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;
namespace fs = std::filesystem;

namespace {

std::string float_model() {
  const std::string path = path_in_folder("float.gguf");
  if (!fs::exists(path)) {
    TinyModel model;
    model.weights = infer::DType::F16;
    write_tiny_model(path, model);
  }
  return path;
}

}  // namespace

TEST_CASE("quantize writes a model that runs, and says what it made on stdout") {
  const std::string out = path_in_folder("q4.gguf");
  const Outcome o = run({"quantize", float_model(), out, "q4_k_m"});
  INFO(o.err);
  CHECK(o.status == 0);
  CHECK(contains(o.out, "bits a weight"));
  CHECK(lines_of(o.out).size() == 1);
  const std::string said = ": rows of 64 are no multiple of 256: Q5_0 instead of Q4_K";
  REQUIRE(contains(o.err, "warning: token_embd.weight and "));
  CHECK(contains(o.err, " more" + said));
  CHECK(o.err.find(said) == o.err.rfind(said));  // once for all of them
  CHECK(run({out, "-p", "ab", "-n", "4", "-no-cnv"}).status == 0);
  for (const auto& entry : fs::directory_iterator(folder())) CHECK_FALSE(contains(entry.path().string(), ".part-"));
}

TEST_CASE("a dry run lists the tensors and writes nothing, with or without OUT") {
  const std::string out = path_in_folder("dry.gguf");
  for (const std::vector<std::string>& args : {std::vector<std::string>{"quantize", "--dry-run", float_model(), "Q8_0"},
                                               {"quantize", float_model(), out, "Q8_0", "--dry-run"}}) {
    const Outcome o = run(args);
    INFO(o.err);
    CHECK(o.status == 0);
    CHECK(contains(o.out, "blk.1.ffn_down.weight"));
    CHECK(contains(o.out, "F16 -> Q8_0"));
    CHECK(contains(o.out, "the file would take "));
    CHECK_FALSE(fs::exists(out));
  }
}

TEST_CASE("quantize refuses what it does not understand, with one line and the status of its kind") {
  const std::string in = float_model(), out = path_in_folder("never.gguf");
  const std::vector<Refusal> refusals = {
      {{"quantize"}, 2, "IN"},
      {{"quantize", in, "Q4_0"}, 2, "OUT"},
      {{"quantize", in, out, "Q4_0", "more"}, 2, "one argument too many"},
      {{"quantize", in, out, "q9"}, 2, "unknown type"},
      {{"quantize", in, out, "iq2_xs"}, 2, "cannot be written"},
      {{"quantize", in, out, "q4_0", "--tensor-type", "ffn"}, 2, "NAME=TYPE"},
      {{"quantize", in, out, "q4_0", "--tensor-type", "ffn=q9"}, 2, "unknown format"},
      {{"quantize", in, out, "q4_0", "--imatrix", in}, 3, "not an importance matrix"},
      {{"quantize", in, out, "q4_0", "--keep-split"}, 2, "--keep-split"},
      {{"quantize", in, in, "q4_0"}, 2, "is the model itself"},
      {{"quantize", path_in_folder("missing.gguf"), out, "q4_0"}, 1, "No such file"},
  };
  check_refusals(refusals, out);
}

TEST_CASE("quantize --help names the types and llama.cpp's flags") {
  const Outcome o = run({"quantize", "--help"});
  CHECK(o.status == 0);
  for (const char* word : {"Q4_K_M", "IQ4_XS", "--allow-requantize", "--tensor-type", "--imatrix", "--pure",
                           "--dry-run", "--leave-output-tensor", "--output-tensor-type", "--token-embedding-type"})
    CHECK(contains(o.out, word));
}
