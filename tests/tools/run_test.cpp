// Completion: where the prompt comes from, what is printed where, when it ends, and that it can be repeated.
#include <algorithm>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;

namespace {

std::vector<std::string> with(std::vector<std::string> args, const std::vector<std::string>& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// The new ids of a run that printed nothing else on stdout.
std::string ids_of(const std::vector<std::string>& more) {
  const Outcome o = run(with({tiny_bpe(), "--ignore-eos", "--print-ids"}, more));
  INFO(o.err);
  REQUIRE(o.status == 0);
  REQUIRE(o.out.front() == '[');
  REQUIRE(o.out.substr(o.out.size() - 2) == "]\n");
  return o.out;
}

size_t count(const std::string& ids) {
  return ids == "[]\n" ? 0 : 1 + static_cast<size_t>(std::count(ids.begin(), ids.end(), ','));
}

const std::vector<std::string> kGreedy = {"--temp", "0", "-n", "12"};

}  // namespace

TEST_CASE("a prompt is the same from -p, a file, a pipe, ids and the environment") {
  const std::string want = ids_of(with(kGreedy, {"-p", "hello world"}));
  CHECK(count(want) == 12);
  CHECK(ids_of(with(kGreedy, {"-f", write_file("prompt.txt", "hello world")})) == want);
  CHECK(ids_of(with(kGreedy, {"--prompt=hello world"})) == want);
  Call pipe;
  pipe.args = with(kGreedy, {tiny_bpe(), "--ignore-eos", "--print-ids"});
  pipe.input = "hello world";
  CHECK(run(pipe).out == want);
  pipe.input = "";
  pipe.environment = {"INFER_PROMPT=hello world"};
  CHECK(run(pipe).out == want);
  const std::string prompt_ids = run({"tokenize", "-m", tiny_bpe(), "-p", "hello world", "--ids"}).out;
  CHECK(ids_of(with(kGreedy, {"--ids", prompt_ids})) == want);
}

TEST_CASE("run is the default command, and the model may be positional or -m") {
  const std::vector<std::string> rest = {"-p", "hello", "-n", "5", "--temp", "0", "--ignore-eos", "--print-ids"};
  const std::string want = run(with({tiny_bpe()}, rest)).out;
  CHECK(count(want) == 5);
  CHECK(run(with({"run", tiny_bpe()}, rest)).out == want);
  CHECK(run(with({"run", "-m", tiny_bpe()}, rest)).out == want);
  CHECK(run(with({"-m", tiny_bpe()}, rest)).out == want);
}

TEST_CASE("stdout has the answer and nothing else, stderr the timings") {
  // Id 267 is an ordinary word: the answer is text, whatever the weights say.
  const Outcome o = run(with(kGreedy, {tiny_bpe(), "-p", "hello", "-l", "267+1000"}));
  REQUIRE(o.status == 0);
  const std::string ids = ids_of(with(kGreedy, {"-p", "hello", "-l", "267+1000"}));
  CHECK(count(ids) == 12);
  CHECK(o.out == run({"detokenize", "-m", tiny_bpe(), "--ids", ids}).out);
  for (const char* part : {"load ", "prompt ", "generation 12 tokens", "tok/s", "memory ", "-n reached"}) {
    INFO(o.err << " lacks " << part);
    CHECK(contains(o.err, part));
  }
  CHECK_FALSE(contains(o.err, "\x1b"));     // no colours
  CHECK_FALSE(contains(o.err, "loading"));  // no progress bar
  CHECK_FALSE(contains(o.err, "\r"));
  CHECK(lines_of(o.err).size() == 1);
}

TEST_CASE("escapes in -p are processed unless --no-escape is given, in files never") {
  const std::string newline = ids_of(with(kGreedy, {"-p", "hello\\nworld\\x21"}));
  CHECK(ids_of(with(kGreedy, {"-p", "hello\nworld!", "--no-escape"})) == newline);
  CHECK(ids_of(with(kGreedy, {"-f", write_file("newline.txt", "hello\nworld!")})) == newline);
  CHECK(ids_of(with(kGreedy, {"-p", "hello\\nworld\\x21", "--no-escape"})) !=
        ids_of(with(kGreedy, {"-p", "hello\\nworld\\x21", "-e"})));
}

TEST_CASE("-n counts the new tokens") {
  CHECK(ids_of({"-p", "hello", "-n", "0"}) == "[]\n");
  CHECK(count(ids_of({"-p", "hello", "-n", "1"})) == 1);
  CHECK(count(ids_of({"-p", "hello", "-n", "33"})) == 33);
  const Outcome none = run({tiny_bpe(), "-p", "hello", "-n", "0"});
  CHECK(none.out.empty());
  CHECK(contains(none.err, "| generation 0 tokens | "));
  CHECK(contains(none.err, "prompt 1 token, "));
}

TEST_CASE("without -n it goes on to the end of the context and says that this was the reason") {
  for (const char* n : {"-1", "-2"}) {
    const Outcome o = run({tiny_bpe(), "-p", "hello", "-n", n, "-c", "64", "--ignore-eos", "--print-ids"});
    INFO(o.err);
    CHECK(o.status == 0);
    CHECK(count(o.out) >= 60);
    CHECK(count(o.out) <= 64);
    CHECK(contains(o.err, "context full"));
  }
}

TEST_CASE("a prompt longer than the context is refused with both numbers") {
  std::string text;
  for (int i = 0; i < 100; ++i) text += " hello";
  const Outcome o = run({tiny_bpe(), "-p", text, "-n", "4", "-c", "32"});
  INFO(o.err);
  CHECK(o.status == 2);
  CHECK(contains(o.err, "32"));
  CHECK(contains(o.err, "10"));  // 100 tokens, or 101
}

TEST_CASE("a context beyond the trained one is possible, with a warning") {
  const Outcome o = run({tiny_bpe(), "-p", "hello", "-n", "1", "-c", "1024"});
  CHECK(o.status == 0);
  CHECK(contains(o.err, "warning: a context of 1024 tokens, and the model was trained for 512"));
  CHECK_FALSE(contains(run({tiny_bpe(), "-p", "hello", "-n", "1", "-c", "512"}).err, "warning"));
}

TEST_CASE("the end-of-answer token ends the answer, unless --ignore-eos is given") {
  // Bias makes the model say <|im_end|> at once.
  const Outcome o = run({tiny_bpe(), "-p", "hello", "-n", "20", "--temp", "0", "-l", "2+1000", "--print-ids"});
  INFO(o.err);
  CHECK(o.out == "[2]\n");
  CHECK(contains(o.err, "end of the answer"));
  CHECK(count(ids_of({"-p", "hello", "-n", "20", "--temp", "0", "-l", "2+1000"})) == 20);
  CHECK(run({tiny_bpe(), "-p", "hello", "-n", "3", "--temp", "0", "-l", "2+1000", "--special"}).out == "<|im_end|>");
}

TEST_CASE("a biased token wins, and a forbidden one never comes") {
  const std::string hello = run({"tokenize", "-m", tiny_bpe(), "-p", " hello", "--ids"}).out;  // "[N]\n"
  const std::string id = hello.substr(1, hello.size() - 3);
  const Outcome o = run({tiny_bpe(), "-p", "hello", "-n", "4", "--temp", "0", "-l", id + "+1000"});
  CHECK(o.out == " hello hello hello hello");
  CHECK_FALSE(contains(ids_of({"-p", "hello", "-n", "60", "-l", id + "-inf"}), " " + id + ","));
}

TEST_CASE("a stop string ends the answer and is no part of it") {
  const std::string hello = run({"tokenize", "-m", tiny_bpe(), "-p", " hello", "--ids"}).out;
  const std::string bias = hello.substr(1, hello.size() - 3) + "+1000";
  const Outcome o = run({tiny_bpe(), "-p", "x", "-n", "20", "--temp", "0", "-l", bias, "-r", "nothing", "-r", "lo he"});
  CHECK(o.out == " hel");
  CHECK(contains(o.err, "stopped at 'lo he'"));
}

TEST_CASE("a seed gives the same tokens every time, and another seed gives others") {
  const std::string a = ids_of({"-p", "hello", "-n", "30", "-s", "7", "--temp", "1.5", "--top-k", "0"});
  CHECK(ids_of({"-p", "hello", "-n", "30", "--seed", "7", "--temp", "1.5", "--top-k", "0"}) == a);
  CHECK(ids_of({"-p", "hello", "-n", "30", "-s", "7", "--temp", "1.5", "--top-k", "0", "-t", "2"}) == a);
  CHECK(ids_of({"-p", "hello", "-n", "30", "-s", "8", "--temp", "1.5", "--top-k", "0"}) != a);
  CHECK(ids_of({"-p", "hello", "-n", "30", "--temp", "1.5", "--top-k", "0"}) !=
        ids_of({"-p", "hello", "-n", "30", "--temp", "1.5", "--top-k", "0"}));  // 2^-200 of a false alarm
}

TEST_CASE("the batch sizes do not change greedy tokens") {
  std::string text;
  for (int i = 0; i < 90; ++i) text += i % 3 ? " world" : " hello you";
  const std::string want = ids_of(with(kGreedy, {"-p", text}));
  CHECK(ids_of(with(kGreedy, {"-p", text, "-ub", "16"})) == want);
  CHECK(ids_of(with(kGreedy, {"-p", text, "-b", "32", "-ub", "7"})) == want);
  CHECK(ids_of(with(kGreedy, {"-p", text, "--no-mmap"})) == want);
}

TEST_CASE("flags of older guides are accepted") {
  const Outcome o = run({tiny_bpe(),
                         "-p",
                         "hello",
                         "-n",
                         "2",
                         "-i",
                         "--interactive",
                         "--color",
                         "--n-gpu-layers",
                         "999",
                         "-fa",
                         "on",
                         "--no-warmup",
                         "--jinja",
                         "-t",
                         "1",
                         "-tb",
                         "1",
                         "--mmap",
                         "--no-display-prompt",
                         "--no-conversation",
                         "-lm",
                         "auto",
                         "-ngl",
                         "auto"});
  INFO(o.err);
  CHECK(o.status == 0);
}

TEST_CASE("characters are never split between writes, whatever bytes the model says") {
  for (const std::string& model : {tiny_bpe(), tiny_spm()}) {
    // Random bytes are rarely a character: a bias makes them continue some.
    std::vector<std::string> args = {model, "-p",      "hello", "-n",      "250", "--temp",       "3",  "--top-k",
                                     "0",   "--top-p", "1",     "--min-p", "0",   "--ignore-eos", "-s", "5"};
    const std::string lead = run({"tokenize", "-m", model, "-p", "\xF0\x9F\x98\x80", "--ids", "--no-bos"}).out;
    size_t at = 1;
    while (at < lead.size()) {
      const size_t end = lead.find_first_of(",]", at);
      if (end == std::string::npos) break;
      args.push_back("-l");
      args.push_back(lead.substr(at, end - at) + "+6");
      at = end + 2;
    }
    const Outcome o = run(args);
    REQUIRE(o.status == 0);
    CHECK(o.out.size() > 100);
    CHECK(o.writes.size() > 50);
    for (const std::string& piece : o.writes) CHECK(is_utf8(piece));
  }
}

TEST_CASE("an answer that ends inside a character is still UTF-8") {
  // Only the first byte of a four-byte character, once and repeated.
  const std::string lead = run({"tokenize", "-m", tiny_spm(), "-p", "\xF0\x9F\x98\x80", "--ids", "--no-bos"}).out;
  const std::string ids = lead.substr(0, lead.size() - 2);
  const size_t comma = ids.find(',');
  const std::string first = ids.substr(ids.rfind('[') + 1, comma - 1);
  for (const char* n : {"1", "3"}) {
    const Outcome o = run({tiny_spm(), "-p", "x", "-n", n, "--temp", "0", "-l", first + "+1000", "--ignore-eos"});
    REQUIRE(o.status == 0);
    CHECK(is_utf8(o.out));
  }
}

TEST_CASE("Ctrl-C ends a completion with status 130 and the timings") {
  Call call;
  call.args = {tiny_long(), "-p", "hello", "--ignore-eos"};
  call.interrupt_at = 20;
  const Outcome o = run(call);
  INFO(o.err);
  CHECK(o.status == 130);
  CHECK(contains(o.err, "| interrupted"));
  CHECK_FALSE(contains(o.err, "error"));
}

TEST_CASE("the author's sampling values are used and printed, unless a sampler flag is given") {
  GgufWriter file = tiny_model();
  file.real("general.sampling.temp", 0.0f);
  file.write(path_in_folder("author.gguf"));
  const std::vector<std::string> args = {
      path_in_folder("author.gguf"), "-p", "hello", "-n", "8", "--ignore-eos", "--print-ids"};
  const Outcome o = run(args);
  CHECK(contains(o.err, "sampling as the model's author set it: temp 0"));
  CHECK(o.out == run(args).out);  // greedy
  CHECK_FALSE(contains(run(with(args, {"--temp", "1"})).err, "author"));
}
