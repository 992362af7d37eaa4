// The outside of the program: help, version, exit status, and what goes to which stream when things go wrong.
#include <unistd.h>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/terminal.h"

using namespace infer::test;

namespace {

const char* const kCommands[] = {"run",        "bench",    "perplexity", "inspect", "tokenize",
                                 "detokenize", "template", "logits",     "eval",    "doctor"};

// A refusal: nothing on stdout, one line on stderr that says `part`.
void check_refusal(const Outcome& o, int status, const std::string& part) {
  INFO("status " << o.status << ", stderr: " << o.err);
  CHECK(o.status == status);
  CHECK(o.out.empty());
  CHECK(contains(o.err, part));
  CHECK(lines_of(o.err).size() == 1);
  CHECK(o.err.rfind("error: ", 0) == 0);
}

}  // namespace

TEST_CASE("every command has help of at most 90 lines and 120 columns on stdout") {
  for (const char* command : kCommands) {
    const Outcome o = run({command, "--help"});
    INFO(command);
    CHECK(o.status == 0);
    CHECK(o.err.empty());
    CHECK(o.out.rfind("usage: infer ", 0) == 0);
    CHECK(lines_of(o.out).size() <= 90);
    for (const std::string& line : lines_of(o.out)) {
      INFO(line);
      CHECK(line.size() <= 120);
    }
    CHECK_FALSE(contains(o.out, "\n:"));
    CHECK(run({command, "-h"}).out == o.out);
  }
}

TEST_CASE("the help of run is grouped and knows the flags in people's fingers") {
  const std::string help = run({"run", "--help"}).out;
  for (const char* group :
       {"\nModel:\n", "\nPrompt:\n", "\nSampling:\n", "\nGeneration:\n", "\nChat:\n", "\nOutput:\n"})
    CHECK(contains(help, group));
  for (const char* flag : {"-m, --model", "-p, --prompt", "-n, ", "-c, --ctx-size", "-s, --seed", "--temp, ", "--top-k",
                           "--ignore-eos", "-no-cnv, ", "-sys, ", "--chat-template", "--print-ids"}) {
    INFO(flag);
    CHECK(contains(help, flag));
  }
}

TEST_CASE("infer alone, help, and version") {
  const Outcome help = run({"--help"});
  CHECK(help.status == 0);
  CHECK(contains(help.out, "perplexity"));
  CHECK(contains(help.out, "exit status: 0 ok"));
  CHECK(lines_of(help.out).size() <= 30);
  CHECK(run({"-h"}).out == help.out);
  CHECK(run(Call{}).out == help.out);
  const Outcome version = run({"--version"});
  CHECK(version.status == 0);
  CHECK(version.out.rfind("infer 0.", 0) == 0);
  CHECK(lines_of(version.out).size() == 1);
}

TEST_CASE("devices are listed, and bash gets completion that bash accepts") {
  const Outcome devices = run({"--list-devices"});
  CHECK(devices.status == 0);
  CHECK(contains(devices.out, "cpu"));
  CHECK(contains(devices.out, "ref"));
  const Outcome completion = run({"--completion-bash"});
  CHECK(completion.status == 0);
  const std::string script = write_file("completion.bash", completion.out);
  CHECK(std::system(("bash -n " + script).c_str()) == 0);
}

TEST_CASE("usage errors end with status 2 and one line") {
  check_refusal(run({"benhc"}), 2, "'benhc': unknown command; did you mean bench?");
  check_refusal(run({"frobnicate"}), 2, "neither a command nor a model file");
  check_refusal(run({tiny_bpe(), "--tmep", "0"}), 2, "--tmep: unknown flag; did you mean --temp?");
  check_refusal(run({tiny_bpe(), "--mirostat", "2"}), 2, "--mirostat: this flag of llama.cpp is not available");
  check_refusal(run({tiny_bpe(), "-n", "many"}), 2, "found 'many'");
  check_refusal(run({tiny_bpe(), "second.gguf"}), 2, "more than one model file");
  check_refusal(run({tiny_bpe(), "-fa", "-p"}), 2, "--flash-attn: bad value, found '-p', allowed on, off, auto");
  check_refusal(run({tiny_bpe(), "-ngl", "lots"}), 2, "--n-gpu-layers");
  check_refusal(run({tiny_bpe(), "-p", "x", "--device", "abacus"}), 2, "abacus");
  check_refusal(run({tiny_bpe(), "-p", "x", "--isa", "mmx"}), 2, "mmx");
  check_refusal(run({tiny_bpe(), "-p", "x", "-ctk", "q9"}), 2, "q9");
  check_refusal(run({"run", "-p", "x"}), 2, "no model given");
  check_refusal(run({tiny_bpe(), "--ids", "", "-n", "1"}), 2, "--ids: no ids given");
  check_refusal(run({tiny_bpe(), "--ids", "1,999999", "-n", "1"}), 2, "999999");
  check_refusal(run({tiny_bpe(), "-p", "", "-n", "1"}), 2, "prompt");
  check_refusal(run({"bench", "-m", tiny_bpe(), "-o", "sql"}), 2, "md, csv, json, jsonl");
  check_refusal(run({"inspect"}), 2, "no model given");
  check_refusal(run({"logits", "-m", tiny_bpe(), "--ids", "1"}), 2, "-o: no output file");
  check_refusal(run({"template"}), 2, "-m MODEL or --chat-template-file");
  check_refusal(run({"perplexity", "-m", tiny_bpe()}), 2, "no text file");
}

TEST_CASE("run errors end with status 1") {
  check_refusal(run({path_in_folder("absent.gguf"), "-p", "x"}), 1, "No such file");
  check_refusal(run({tiny_bpe(), "-f", path_in_folder("absent.txt")}), 1, "absent.txt: No such file");
  check_refusal(run({"logits", "-m", tiny_bpe(), "--ids", "1", "-o", "/nonexistent/x"}), 1, "/nonexistent/x");
}

// A sanitized program lives outside any limit on its address space, so nothing there can fail to fit.
#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("what cannot fit ends with status 4 and says what would") {
  Call call;
  call.args = {tiny_bpe(), "-p", "hello", "-n", "1", "-c", "16777216"};
  call.memory_bytes = size_t{1} << 30;
  const Outcome o = run(call);
  INFO(o.err);
  // The model was trained for 512 positions: asking for more is either refused or does not fit; it never starts.
  CHECK((o.status == 4 || o.status == 2));
  CHECK(o.out.empty());
}
#endif

TEST_CASE("a progress bar appears at a terminal after a second, in one line that it takes away again") {
  const auto load = [](bool slow) {
    infer::tools::ProgressBar bar("loading");
    bar.update(0.25);
    if (slow) usleep(1050000);
    for (const double share : {0.5, 0.5, 0.501, 0.75}) bar.update(share);
  };
  CHECK(printed_at_terminal([&] { load(false); }).empty());
  const std::string slow = printed_at_terminal([&] { load(true); });
  CHECK_FALSE(contains(slow, " 25%"));
  CHECK(contains(slow, "\rloading [====================                    ]  50%"));
  CHECK(slow.find("50%") == slow.rfind("50%"));
  CHECK(contains(slow, " 75%"));
  CHECK_FALSE(contains(slow, "\n"));
  CHECK(slow.substr(slow.size() - 4) == "\r\x1b[K");
}

TEST_CASE("a model whose name has no dot is a model") {
  Call call;
  write_file("model", read_file(tiny_bpe()));
  call.args = {"model", "-p", "hello", "-n", "1"};
  call.directory = folder();
  CHECK(run(call).status == 0);
}

TEST_CASE("names with spaces, percent signs and other scripts work, and are printed safely") {
  for (const char* name : {"a b.gguf", "100%n%s.gguf", "m\xc3\xb6\xe6\xa8\xa1.gguf"}) {
    const std::string path = write_file(name, read_file(tiny_bpe()));
    INFO(name);
    CHECK(run({path, "-p", "hello", "-n", "1"}).status == 0);
    CHECK(contains(run({"inspect", path}).out, name));
  }
  const std::string hostile = "no\n\x1b[2Jerror: fine.gguf";
  const Outcome o = run({path_in_folder(hostile), "-p", "x"});
  CHECK(o.status == 1);
  CHECK_FALSE(contains(o.err, "\x1b"));
  CHECK(lines_of(o.err).size() == 1);
}

TEST_CASE("output that cannot be written is an error, unless the reader has seen enough") {
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{tiny_bpe(), "-p", "hello", "-n", "40", "--ignore-eos", "--temp", "0"},
        {"inspect", tiny_bpe(), "--all"},
        {"inspect", tiny_bpe(), "--json"},
        {"tokenize", "-m", tiny_bpe(), "-p", std::string(2000, 'x')},
        {"run", "--help"}}) {
    INFO(args[0] << " " << args[1]);
    Call full;
    full.args = args;
    full.stdout_file = "/dev/full";
    const Outcome o = run(full);
    INFO(o.err);
    CHECK(o.status == 1);
    CHECK(contains(o.err, "error: stdout: No space left on device"));
    Call head;
    head.args = args;
    head.read_at_most = 1;
    const Outcome h = run(head);
    INFO(h.err);
    CHECK(h.status == 0);
    CHECK_FALSE(contains(h.err, "error"));
  }
}

TEST_CASE("a closed stderr is no reason to fail") {
  Call call;
  const std::string script =
      write_file("closed.sh", std::string(INFER_PROGRAM) + " \"$@\" 2>&- | cat >" + path_in_folder("closed.out"));
  CHECK(std::system(
            ("bash -o pipefail " + script + " " + tiny_bpe() + " -p hello -n 3 --temp 0 --ignore-eos").c_str()) == 0);
  CHECK_FALSE(read_file(path_in_folder("closed.out")).empty());
}
