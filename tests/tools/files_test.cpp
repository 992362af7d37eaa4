// What the program does with files that are no models, or bad ones: one line, a status, and neither time nor memory.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/catch.h"
#include "tests/runtime/gguf_corpus.h"
#include "tests/runtime/gguf_corpus_edits.h"
#include "tests/tools/forked_calls.h"
#include "tests/tools/program.h"

using namespace infer::test;
namespace fs = std::filesystem;

namespace {

// Limits under which bad files must fail. Sanitized programs are slow, and this machine may be busy.
Outcome limited(const std::vector<std::string>& args) {
  Call call;
  call.args = args;
  call.memory_bytes = size_t{256} << 20;
  call.timeout_seconds = kSanitized ? 20 : 10;
  return run(call);
}

void check_one_line(const Outcome& o, const std::string& path) {
  CHECK(lines_of(o.err).size() == 1);
  CHECK(o.err.rfind("error: ", 0) == 0);
  CHECK(contains(o.err, path));
  for (char c : o.err)
    if (static_cast<unsigned char>(c) < 32 && c != '\n') FAIL("a control character on stderr");
}

}  // namespace

TEST_CASE("files that look like something else are named for what they are") {
  const struct {
    const char *name, *bytes, *looks_like;
  } cases[] = {{"lfs.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs"},
               {"page.gguf", "<!DOCTYPE html>\n<html><body>404</body></html>", "HTML"},
               {"archive.gguf", "PK\x03\x04 and so on, a zip archive", "zip"},
               {"notes.gguf", "these are just some notes\n", "these are"},
               {"empty.gguf", "", "empty"}};
  for (const auto& c : cases) {
    const std::string path = write_file(c.name, c.bytes);
    for (const std::vector<std::string>& args : {std::vector<std::string>{path, "-p", "x"},
                                                 {"inspect", path},
                                                 {"tokenize", "-m", path, "-p", "x"},
                                                 {"bench", "-m", path}}) {
      const Outcome o = limited(args);
      INFO(c.name << ": " << o.err);
      CHECK(o.status == 3);
      CHECK(o.out.empty());
      check_one_line(o, path);
      CHECK(contains(o.err, c.looks_like));
    }
  }
}

TEST_CASE("what is no regular file is refused") {
  const std::string fifo = path_in_folder("fifo"), loop = path_in_folder("loop"), dangling = path_in_folder("dangling");
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  fs::create_symlink(loop, loop);
  fs::create_symlink(path_in_folder("nowhere"), dangling);
  for (const std::string& path :
       {fifo, loop, dangling, folder(), std::string("/dev/null"), folder() + "/absent.gguf"}) {
    const Outcome o = limited({path, "-p", "x"});
    INFO(path << ": " << o.err);
    CHECK((o.status == 1 || o.status == 3));
    CHECK(o.out.empty());
    check_one_line(o, path);
  }
}

TEST_CASE("of calls in one process one that does not end is named, and those behind it are made") {
  const std::string model = write_file("forked.gguf", small_model().bytes()),
                    junk = write_file("junk.gguf", "no model");
  const std::vector<std::vector<std::string>> calls = {
      {"inspect", model},
      {"bench", "-m", model, "-p", "2", "-n", "2", "--duration", "60s", "-t", "1"},
      {"inspect", junk},
      {"--version"},
  };
  const std::vector<Outcome> outcomes = run_forked(calls, 2);
  REQUIRE(outcomes.size() == calls.size());
  CHECK(outcomes[0].status == 0);
  CHECK(contains(outcomes[0].out, "llama"));
  CHECK(outcomes[1].status == -SIGALRM);
  CHECK(outcomes[2].status == 3);
  check_one_line(outcomes[2], junk);
  CHECK(outcomes[3].status == 0);
  CHECK(contains(outcomes[3].out, "infer "));
  fs::remove(model), fs::remove(junk);
}

TEST_CASE("every malformed file of the corpus is refused by the commands, quickly, in one line that names it") {
  const std::vector<MutatedFile> files = mutated_gguf_files();
  REQUIRE(files.size() > 200);
  struct Asked {
    const MutatedFile* file;
    std::string path;
  };
  std::vector<Asked> asked;
  std::vector<std::vector<std::string>> calls;
  for (const MutatedFile& f : files) {
    const std::string path = write_file(f.name + ".gguf", f.bytes);
    calls.push_back({"inspect", path});
    calls.push_back({"logits", "-m", path, "--ids", "5,6", "-o", path_in_folder("corpus.f32"), "-t", "1"});
    asked.insert(asked.end(), 2, {&f, path});
  }
  std::vector<Outcome> outcomes;
  if (kSanitized)
    outcomes = run_forked(calls, 20);
  else
    for (const auto& args : calls) outcomes.push_back(limited(args));
  double slowest = 0;
  size_t refused = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    const MutatedFile& f = *asked[i].file;
    const Outcome& o = outcomes[i];
    INFO(f.name << " by " << calls[i][0] << ": status " << o.status << ", " << o.err);
    slowest = std::max(slowest, o.cpu_seconds);
    if (f.must_refuse) {
      CHECK(o.status == 3);
      check_one_line(o, asked[i].path);
      if (calls[i][0] == "logits" || !f.needs_config) CHECK(contains(o.err, f.expect));
      ++refused;
    } else {
      CHECK(o.status == 0);
    }
    fs::remove(asked[i].path);
  }
  INFO("slowest " << slowest << " s of processor time");
  CHECK(slowest < (kSanitized ? 10 : 2));
  CHECK(refused > 200);
}

TEST_CASE("a model that shrinks while it is in use ends the program with a line that names it") {
  const std::string path = write_file("shrinking.gguf", read_file(tiny_bpe()));
  Terminal t({path, "-n", "4", "--ignore-eos"}, true);
  REQUIRE(t.prompts());
  fs::resize_file(path, 4096);
  t.type("hello\r");
  const int status = t.ends();
  INFO(t.screen());
  CHECK(status == 3);
  CHECK(contains(t.screen(), "shrinking.gguf: the file shrank"));
}

TEST_CASE("256 KiB of stack are enough for every thread") {
  Call call;
  call.stack_bytes = 256 << 10;
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{tiny_bpe(), "-p", std::string(300, 'x'), "-n", "3", "-t", "2"},
        {tiny_spm(), "-st", "-p", "hello", "-n", "3"},
        {"inspect", tiny_bpe(), "--json"},
        {"tokenize", "-m", tiny_bpe(), "-p", std::string(100000, 'x'), "--ids"},
        {"bench", "-m", tiny_bpe(), "-p", "16", "-n", "2", "-r", "1"}}) {
    call.args = args;
    const Outcome o = run(call);
    INFO(args[0] << ": " << o.err);
    CHECK(o.status == 0);
  }
}

TEST_CASE("a model cut anywhere is refused, and bytes after its end are only worth a warning") {
  const std::string good = read_file(tiny_bpe());
  for (const double share : {0.001, 0.01, 0.1, 0.5, 0.9, 0.999}) {
    const std::string path =
        write_file("cut.gguf", good.substr(0, static_cast<size_t>(share * static_cast<double>(good.size()))));
    const Outcome o = limited({path, "-p", "x", "-n", "1"});
    INFO(share << ": " << o.err);
    CHECK(o.status == 3);
    check_one_line(o, path);
  }
  const Outcome o = limited({write_file("long.tail.gguf", good + std::string(1000, 'x')), "-p", "hello", "-n", "1"});
  INFO(o.err);
  CHECK(o.status == 0);
  CHECK(contains(o.err, "warning:"));
  CHECK(contains(o.err, "1000"));
}
