// Hugging Face folders as people call the program with them: run, inspect, and quantize to a GGUF file.
#include <filesystem>

#include "tests/catch.h"
#include "tests/runtime/hf_families.h"
#include "tests/tools/program.h"

using namespace infer::test;
namespace fs = std::filesystem;

namespace {

std::string model_folder(const std::string& type = "llama") {
  const std::string path = path_in_folder("hf-" + type);
  if (fs::create_directory(path)) hf_family(type).write(path);
  return path;
}

std::string continuation(const std::string& model) {
  const Outcome o = run({model, "-p", "the cat", "-n", "12", "--temp", "0", "-no-cnv", "--device", "ref"});
  INFO(o.err);
  CHECK(o.status == 0);
  return o.out;
}

}  // namespace

TEST_CASE("a folder runs, and so does the file that quantize makes of it, with the same answer") {
  const std::string out = path_in_folder("converted.gguf");
  const Outcome o = run({"quantize", model_folder(), out, "f32"});
  INFO(o.err);
  CHECK(o.status == 0);
  CHECK(contains(o.out, "bits a weight"));
  CHECK(continuation(model_folder()).size() > 10);
  CHECK(continuation(out) == continuation(model_folder()));
  const Outcome q4 = run({"quantize", model_folder("gemma3_text"), path_in_folder("q4.gguf"), "q4_0", "--verbose"});
  CHECK(q4.status == 0);
  CHECK(contains(q4.err, "blk.0.attn_q.weight"));
  CHECK(continuation(path_in_folder("q4.gguf")).size() > 10);
}

TEST_CASE("inspect says of a folder what it says of the file made of it") {
  const std::string out = path_in_folder("inspected.gguf");
  REQUIRE(run({"quantize", model_folder("qwen2"), out, "f32"}).status == 0);
  const Outcome hf = run({"inspect", model_folder("qwen2"), "--all"}), gguf = run({"inspect", out, "--all"});
  INFO(hf.err);
  CHECK(hf.status == 0);
  CHECK(gguf.status == 0);
  CHECK(contains(hf.out, "Hugging Face folder"));
  for (const char* text : {"qwen2", "blk.4.attn_q.bias", "blk.0.ffn_down.weight", "output.weight",
                           "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"}) {
    CHECK(contains(hf.out, text));
    CHECK(contains(gguf.out, text));
  }
  CHECK(run({"inspect", model_folder("qwen2"), "--json"}).status == 0);
}

TEST_CASE("a dry run lists the tensors that a folder's file would have") {
  const Outcome o = run({"quantize", "--dry-run", model_folder("mixtral"), "q8_0"});
  CHECK(o.status == 0);
  CHECK(contains(o.out, "blk.4.ffn_gate_exps.weight"));
  CHECK(contains(o.out, "F32 -> Q8_0"));
}

TEST_CASE("what quantize cannot make a file of is refused with one line") {
  const std::string out = path_in_folder("never.gguf");
  const std::string strange = path_in_folder("strange"), empty = path_in_folder("empty");
  fs::create_directory(empty);
  fs::create_directory(strange);
  HfFiles files = hf_family("llama");
  files.tokenizer["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "[a-z]+"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  files.write(strange);
  const std::vector<Refusal> refusals = {
      {{"quantize", empty, out, "f16"}, 3, "a folder without config.json"},
      {{"quantize", strange, out, "f16"}, 3, "no name that GGUF files have means these cuts"},
      {{"quantize", model_folder(), model_folder() + "/model.safetensors", "f16"}, 2, "is the model itself"},
  };
  check_refusals(refusals, out);
}
