// `infer imatrix` as people call it.
#include <filesystem>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;
namespace fs = std::filesystem;

namespace {

std::string some_text() {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "hello world, the model is in you ";
  return write_file("words.txt", text);
}

}  // namespace

TEST_CASE("imatrix measures, merges and goes on, and quantize takes the result") {
  const std::string one = path_in_folder("one.imatrix"), two = path_in_folder("two.imatrix");
  Outcome o = run({"imatrix", "-m", tiny_bpe(), "-f", some_text(), "-o", one, "-c", "64", "--chunks", "3", "--no-ppl"});
  INFO(o.err);
  CHECK(o.status == 0);
  CHECK(o.out.empty());
  CHECK(contains(o.err, "14 tensors, 3 chunks"));
  o = run({"imatrix", "-m", tiny_bpe(), "-f", some_text(), "-o", two, "-c", "64", "--chunks", "2", "--from-chunk", "3",
           "--in-file", one, "--process-output"});
  INFO(o.err);
  CHECK(contains(o.err, "15 tensors, 5 chunks, 2 of them new"));
  o = run({"imatrix", "--in-file", one, "--in-file", two, "-o", two});
  INFO(o.err);
  CHECK(contains(o.err, "15 tensors, 8 chunks"));
  o = run({"quantize", tiny_bpe(), path_in_folder("w.gguf"), "q4_0", "--imatrix", two});
  INFO(o.err);
  CHECK(o.status == 0);
  for (const auto& entry : fs::directory_iterator(folder())) CHECK_FALSE(contains(entry.path().string(), ".part-"));
}

TEST_CASE("imatrix refuses what it does not understand, with one line and the status of its kind") {
  const std::string out = path_in_folder("never.imatrix"), text = some_text();
  const std::vector<Refusal> refusals = {
      {{"imatrix"}, 2, "-f"},
      {{"imatrix", "-f", text, "-o", out}, 2, "-m"},
      {{"imatrix", "-m", tiny_bpe(), "-f", write_file("short.txt", "hello"), "-o", out}, 2, "shorter than one chunk"},
      {{"imatrix", "-m", tiny_bpe(), "-f", text, "-o", out, "-c", "4"}, 2, "--ctx-size"},
      {{"imatrix", "-m", tiny_bpe(), "-f", text, "-o", out, "--output-format", "dat"}, 2, "dat"},
      {{"imatrix", "-m", tiny_bpe(), "-f", text, "-o", out, "-c", "64", "--in-file", text}, 3, "words.txt"},
      {{"imatrix", "-m", tiny_bpe(), "-f", text, "-o", text, "-c", "64"}, 2, "is the text itself"},
      {{"imatrix", "-m", tiny_bpe(), "-f", text, "-o", tiny_bpe(), "-c", "64"}, 2, "is the model itself"},
      {{"imatrix", "-m", tiny_bpe(), "-f", path_in_folder("missing.txt"), "-o", out}, 1, "No such file"},
      {{"imatrix", "-m", tiny_bpe(), "-f", text, "-o", folder(), "-c", "64"}, 1, "no regular file"},
  };
  check_refusals(refusals, out);
}

TEST_CASE("imatrix --help names the flags of llama-imatrix") {
  const Outcome o = run({"imatrix", "--help"});
  CHECK(o.status == 0);
  for (const char* word : {"--process-output", "--output-frequency", "--chunks", "--from-chunk", "--in-file", "-o"})
    CHECK(contains(o.out, word));
}
