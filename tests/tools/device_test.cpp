// Devices as a person asks for them: --device, -ngl, --mode, and `infer plan`. The program sees no GPU here, so that
// these hold on every machine.
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;

namespace {

void check_refusal(const Outcome& o, int status, const std::string& part) {
  INFO("status " << o.status << ", stderr: " << o.err);
  CHECK(o.status == status);
  CHECK(contains(o.err, part));
  CHECK(lines_of(o.err).size() == 1);
  CHECK(o.err.rfind("error: ", 0) == 0);
}

// Why there is no GPU, in one of the ways in which there can be none.
bool says_why(const std::string& text) {
  return contains(text, "built without CUDA") || contains(text, "there is no NVIDIA driver") ||
         contains(text, "driver is too old") || contains(text, "there is no NVIDIA GPU");
}

// A model with heads of 64, for which the GPU has kernels.
const std::string& wide() {
  static const std::string path = [] {
    TinyModel model;
    model.dim = 256;
    model.weights = infer::DType::BF16;
    model.context = 4096;
    const std::string made = path_in_folder("wide.gguf");
    write_tiny_model(made, model);
    return made;
  }();
  return path;
}

}  // namespace

TEST_CASE("a GPU that was asked for and cannot be used ends the program with the reason") {
  for (const char* device : {"cuda", "cuda:0", "cuda:99"}) {
    INFO(device);
    for (const char* command : {"run", "inspect", "plan", "bench"}) {
      std::vector<std::string> args = {command, "-m", tiny_bpe(), "--device", device};
      if (std::string(command) == "run") args.insert(args.end(), {"-p", "x", "-n", "1"});
      const Outcome o = run(args);
      check_refusal(o, 1, "device: cuda cannot be used: ");
      CHECK(says_why(o.err));
      CHECK(o.out.empty());
    }
  }
}

TEST_CASE("without a GPU nothing is said about it") {
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{}, {"-ngl", "99"}, {"--device", "auto"}, {"--mode", "graph"}, {"--device", "cpu"}}) {
    std::vector<std::string> args = {"run", tiny_bpe(), "-no-cnv", "-p", "x", "-n", "2", "--temp", "0"};
    args.insert(args.end(), more.begin(), more.end());
    const Outcome o = run(args);
    CHECK(o.status == 0);
    CHECK_FALSE(contains(o.err, "cuda"));
    CHECK_FALSE(contains(o.err, "device"));
  }
}

TEST_CASE("-ngl 0 is the CPU, whatever the device would have been") {
  CHECK(run({"run", tiny_bpe(), "-no-cnv", "-p", "x", "-n", "1", "--device", "cuda", "-ngl", "0"}).status == 0);
  check_refusal(run({"run", tiny_bpe(), "-p", "x", "--device", "cuda", "-ngl", "33"}), 1, "cuda cannot be used");
}

TEST_CASE("wrong names of devices and modes are usage errors that name the choices") {
  check_refusal(run({tiny_bpe(), "-p", "x", "--device", "cpu:1"}), 2, "auto, cuda, cuda:N, cpu, ref");
  check_refusal(run({tiny_bpe(), "-p", "x", "--device", "cuda:one"}), 2, "cuda:one");
  check_refusal(run({tiny_bpe(), "-p", "x", "--mode", "warp"}), 2, "auto, persistent, graph, eager");
  check_refusal(run({"bench", "-m", tiny_bpe(), "--mode", "warp"}), 2, "auto, persistent, graph, eager");
  check_refusal(run({tiny_bpe(), "-p", "x", "--act", "fp4"}), 2, "auto, f16, bf16, int8, fp8");
}

TEST_CASE("--act is refused where there is no kernel, with the weights' format, and announced where there is") {
  std::vector<std::string> args = {"run", wide(), "-no-cnv", "-p", "x", "-n", "2", "--temp", "0"};
  const auto with = [&](const char* act, const char* device) {
    std::vector<std::string> all = args;
    all.insert(all.end(), {"--act", act, "--device", device});
    return run(all);
  };
  check_refusal(with("int8", "cpu"), 2, "int8 with BF16");
  check_refusal(with("f16", "cpu"), 2, "f16 with BF16");
  check_refusal(with("bf16", "ref"), 2, "float32");
  check_refusal(with("bf16", "cpu"), 2, "bf16 with BF16");
  check_refusal(with("fp8", "cpu"), 2, "fp8 with BF16");
  check_refusal(run({"bench", "-m", wide(), "--act8", "--device", "cpu"}), 2, "fp8 with BF16");
  check_refusal(run({"run", wide(), "-p", "x", "--act8", "--device", "ref"}), 2, "float32");
  for (const char* command : {"run", "bench", "perplexity", "selftest"})
    for (const char* flag : {"--act TYPE", "--act8"}) CHECK(contains(run({command, "--help"}).out, flag));
  check_refusal(run({"bench", "-m", wide(), "--act", "int8", "--device", "cpu"}), 2, "int8 with BF16");
  // A reference in another format than the model's is no obstacle.
  TinyModel model;
  model.dim = 256, model.weights = infer::DType::Q8_0, model.context = 4096;
  write_tiny_model(path_in_folder("quantised.gguf"), model);
  args[1] = path_in_folder("quantised.gguf");
  const Outcome own = with("int8", "cpu"), usual = run(args);
  CHECK(own.status == 0);
  CHECK(own.out == usual.out);
  CHECK(contains(own.err, "device: cpu ("));
  CHECK(contains(own.err, "activations int8\n"));
  std::string text;
  for (int i = 0; i < 200; ++i) text += " hello world";
  text = write_file("act.txt", text);
  for (const std::string& reference : {wide(), path_in_folder("quantised.gguf")}) {  // the same file: as usual
    const Outcome o = run({"perplexity", "-m", path_in_folder("quantised.gguf"), "--act", "int8", "--device", "cpu",
                           "-f", text, "-c", "64", "--chunks", "1", "--kl-divergence", "--reference", reference});
    INFO(o.err);
    CHECK(o.status == 0);
    CHECK(contains(o.out, "Mean    KLD:"));
  }
}

TEST_CASE("--no-graphs is --mode eager, and refuses a mode that records steps") {
  for (const char* mode : {"persistent", "graph"}) {
    check_refusal(run({tiny_bpe(), "-p", "x", "--no-graphs", "--mode", mode}), 2, "--no-graphs: ");
    check_refusal(run({tiny_bpe(), "-p", "x", "--mode", mode, "--no-graphs"}), 2, std::string("--mode ") + mode);
    check_refusal(run({"bench", "-m", tiny_bpe(), "--mode", mode, "--no-graphs"}), 2, "--no-graphs: ");
  }
  for (const std::vector<std::string>& more : {std::vector<std::string>{"--no-graphs"},
                                               {"--no-graphs", "--mode", "auto"},
                                               {"--mode", "eager", "--no-graphs"}}) {
    std::vector<std::string> args = {"run", tiny_bpe(), "-no-cnv", "-p", "x", "-n", "2", "--temp", "0"};
    args.insert(args.end(), more.begin(), more.end());
    const Outcome o = run(args);
    CHECK(o.status == 0);
    CHECK_FALSE(contains(o.err, "device"));  // the CPU has no steps to record
  }
  CHECK(contains(run({"run", "--help"}).out, "--no-graphs"));
}

TEST_CASE("--no-fusion computes the same tokens and says that it is on") {
  const std::vector<std::string> args = {"run", tiny_bpe(), "-no-cnv", "-p", "hello", "-n", "8", "--temp", "0"};
  std::vector<std::string> off = args;
  off.push_back("--no-fusion");
  const Outcome fused = run(args), composed = run(off);
  CHECK(composed.status == 0);
  CHECK(composed.out == fused.out);
  CHECK(contains(composed.err, "device: cpu ("));
  CHECK(contains(composed.err, ", no fusion\n"));
  CHECK_FALSE(contains(fused.err, "fusion"));
  check_refusal(run({tiny_bpe(), "-p", "x", "--no-fusion", "--mode", "persistent"}), 2, "fused stages");
  CHECK(run({"selftest", tiny_bpe(), "--device", "cpu", "--no-fusion"}).status == 0);
}

TEST_CASE("devices that cannot be used are listed with the reason") {
  const Outcome o = run({"--list-devices"});
  CHECK(o.status == 0);
  CHECK(contains(o.out, "not usable: cuda: "));
  CHECK(says_why(o.out));
  CHECK(contains(o.out, "cpu: any"));
}

TEST_CASE("plan shows what a GPU of a given size would hold, without one") {
  const Outcome o = run({"plan", "-m", wide(), "--vram", "24G", "-c", "1024", "-np", "2"});
  CHECK(o.status == 0);
  CHECK(o.err.empty());
  for (const char* part : {"memory of cuda, 2 sequences of 1024 positions", "weights, packed", "embedding", "KV cache",
                           "activations", "program", "in all", "24576.0 MiB", "largest context that fits: "}) {
    INFO(part << "\n" << o.out);
    CHECK(contains(o.out, part));
  }
  const auto j = nlohmann::json::parse(run({"plan", wide(), "--vram", "24GiB", "-c", "1024", "--json"}).out);
  CHECK(j["device"] == "cuda");
  CHECK(j["fits"] == true);
  CHECK(j["n_ctx"] == 1024);
  CHECK(j["kv_bytes"] == 1024 * j["kv_bytes_per_token"].get<int64_t>());
  CHECK(j["available_bytes"] == int64_t{24} << 30);
  const auto q8 = nlohmann::json::parse(
      run({"plan", wide(), "--vram", "24G", "-c", "1024", "-ctk", "q8_0", "-ctv", "q8_0", "--json"}).out);
  CHECK(q8["kv_bytes"] < j["kv_bytes"]);
}

TEST_CASE("plan ends with status 4 and the largest context when it does not fit") {
  const Outcome o = run({"plan", "-m", wide(), "--vram", "1200M", "-c", "4000000"});
  check_refusal(o, 4, "context: 4000000 positions need");
  CHECK(contains(o.err, "allowed at most "));
  CHECK(contains(o.out, "4000000 positions"));
  const auto j = nlohmann::json::parse(run({"plan", wide(), "--vram", "1200M", "-c", "4000000", "--json"}).out);
  CHECK(j["fits"] == false);
  const std::string largest = std::to_string(j["largest_ctx"].get<int64_t>());
  CHECK(contains(o.err, "at most " + largest));
  CHECK(run({"plan", wide(), "--vram", "1200M", "-c", largest}).status == 0);
  check_refusal(run({"plan", wide(), "--vram", "100M"}), 4, "weights: need ");
}

TEST_CASE("plan without a size is for the device that would be used") {
  const Outcome o = run({"plan", tiny_bpe()});
  CHECK(o.status == 0);
  CHECK(contains(o.out, "memory of cpu ("));
  check_refusal(run({"plan"}), 2, "no model given");
  for (const char* bad : {"", "24X", "G", "-1G", "0", "1e3G", "24 G"})
    check_refusal(run({"plan", tiny_bpe(), "--vram", bad}), 2, "--vram");
  // Heads of 16: no kernel, and no plan either.
  check_refusal(run({"plan", tiny_bpe(), "--vram", "24G"}), 3, "no CUDA kernel for attention with heads of 16");
}

TEST_CASE("selftest prints a table, and its status is that of a gate") {
  const Outcome good = run({"selftest", "-m", tiny_bpe(), "--device", "cpu"});
  INFO(good.out << good.err);
  CHECK(good.status == 0);
  CHECK(contains(good.out, "attn_in"));
  CHECK(contains(good.out, "steps, three sequences"));
  CHECK(contains(good.out, "passed, "));
  CHECK_FALSE(contains(good.out, "FAIL"));
  const Outcome json = run({"selftest", tiny_bpe(), "--device", "cpu", "--json"});
  REQUIRE(json.status == 0);
  const auto parsed = nlohmann::json::parse(json.out);
  CHECK(parsed["passed"] == true);
  CHECK(parsed["rows"].size() > 30);
  GgufWriter file = tiny_model();
  file.find_tensor("blk.0.attn_output.weight").data.replace(0, 4, std::string("\0\0\xc0\x7f", 4));  // NaN
  file.write(path_in_folder("nan.gguf"));
  const Outcome bad = run({"selftest", path_in_folder("nan.gguf"), "--device", "cpu"});
  CHECK(bad.status == 5);
  CHECK(contains(bad.out, "FAIL"));
  CHECK(contains(bad.err, "not everything passed"));
  CHECK(run({"selftest"}).status == 2);
}

TEST_CASE("a cache of two types that a GPU has no quick kernel for is told, with one that it has") {
  const auto planned = [](const std::string& k, const std::string& v, const std::vector<std::string>& more) {
    std::vector<std::string> args = {"plan", "-m", wide(), "-ctk", k, "-ctv", v};
    args.insert(args.end(), more.begin(), more.end());
    return run(args);
  };
  const Outcome slow = planned("q4_0", "f16", {"--vram", "24G"});
  CHECK(slow.status == 0);
  REQUIRE(lines_of(slow.err).size() == 1);
  CHECK(contains(slow.err, "warning: -ctk q4_0 -ctv f16 has no tensor-core kernel on a GPU"));
  CHECK(contains(slow.err, "-ctk q8_0 -ctv f16 has one"));
  CHECK(planned("q8_0", "f16", {"--vram", "24G"}).err.empty());
  CHECK(planned("q8_0", "q4_0", {"--vram", "24G"}).err.empty());
  const Outcome json = planned("f32", "f32", {"--vram", "24G", "--json"});
  CHECK(contains(nlohmann::json::parse(json.out)["cache_note"].get<std::string>(), "-ctk f16 -ctv f16 has one"));
  // On the CPU every pair has the same kernels.
  CHECK(planned("q4_0", "f16", {"--device", "cpu"}).err.empty());
  const Outcome o = run({"run", wide(), "--device", "cpu", "-no-cnv", "-p", "x", "-n", "2", "--temp", "0", "-ctk",
                         "q4_0", "-ctv", "f32"});
  CHECK(o.status == 0);
  CHECK_FALSE(contains(o.err, "warning: "));
}
