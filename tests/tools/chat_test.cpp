// Chatting, at a pseudo-terminal as a person sees it, and over a pipe.
#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;

namespace {

const std::string kCtrlC = "\x03", kCtrlD = "\x04";

// A short answer that always comes out the same.
std::vector<std::string> short_answers(const std::vector<std::string>& more = {}) {
  std::vector<std::string> args = {tiny_bpe(), "--temp", "0", "-n", "4", "--ignore-eos"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// One message to the model, as the program itself renders and answers it.
std::string answer_to(const std::string& text, const std::vector<std::string>& more = {}) {
  std::vector<std::string> args = short_answers({"-st", "-p", text, "--no-escape"});
  args.insert(args.end(), more.begin(), more.end());
  const Outcome o = run(args);
  INFO(o.err);
  REQUIRE(o.status == 0);
  REQUIRE(o.out.size() > 1);
  return o.out;  // ends with a newline
}

}  // namespace

TEST_CASE("at a terminal a model with a template chats, and /exit, /quit, /bye and Ctrl-D leave") {
  for (const std::string& leave : {std::string("/exit\r"), std::string("/quit\r"), std::string("/bye\r"), kCtrlD}) {
    Terminal t(short_answers());
    REQUIRE(t.shows("/help for commands"));
    REQUIRE(t.prompts());
    t.type("hello\r");
    REQUIRE(t.shows("[stopped after -n tokens]"));
    REQUIRE(t.prompts());
    t.type(leave);
    const int status = t.ends();
    INFO(t.screen());
    CHECK(status == 0);
    CHECK(contains(t.screen(), "tok/s"));
  }
}

TEST_CASE("answers go to stdout, the rest of the conversation to the terminal") {
  Terminal t(short_answers(), true);
  REQUIRE(t.prompts());
  t.type("hello\r");
  REQUIRE(t.prompts());
  t.type("/exit\r");
  CHECK(t.ends() == 0);
  CHECK(t.answers() == answer_to("hello"));
  CHECK_FALSE(contains(t.answers(), "\x1b"));
}

TEST_CASE("colours come to a terminal, unless NO_COLOR is set") {
  for (const bool no_color : {false, true}) {
    Terminal t({tiny_bpe(), "--modle"}, false,
               no_color ? std::vector<std::string>{"NO_COLOR=1"} : std::vector<std::string>{});
    CHECK(t.ends() == 2);
    CHECK(contains(t.screen(), "\x1b[31m") == !no_color);
    CHECK(contains(t.screen(), "did you mean --model?"));
  }
}

TEST_CASE("/help lists the commands, and an unknown one is not sent to the model") {
  Terminal t(short_answers());
  REQUIRE(t.prompts());
  t.type("/help\r");
  for (const char* word : {"/clear", "/regen", "/system", "/read", "/stats", "/exit", "\"\"\""}) CHECK(t.shows(word));
  t.type("/celar\r");
  CHECK(t.shows("unknown command /celar"));
  t.type("/exit\r");
  CHECK(t.ends() == 0);
  CHECK_FALSE(contains(t.screen(), "tok/s"));  // no answer, no timings
}

TEST_CASE("history is sent with every message, /clear forgets it, /regen answers again") {
  Terminal t(short_answers(), true);
  REQUIRE(t.prompts());
  const std::string keys[] = {"hello\r", "hello\r", "/regen\r", "/clear\r", "hello\r", "/clear\r", "/regen\r"};
  for (const std::string& k : keys) {
    t.type(k);
    REQUIRE(t.prompts());
  }
  CHECK(contains(t.screen(), "there is no answer to make again"));
  t.type("/exit\r");
  REQUIRE(t.ends() == 0);
  const std::string first = answer_to("hello");
  // first, second (other: it saw the first), second again, first again
  REQUIRE(t.answers().rfind(first, 0) == 0);
  const std::string rest = t.answers().substr(first.size());
  REQUIRE(rest.size() > first.size());
  const std::string last = rest.substr(rest.size() - first.size());
  CHECK(last == first);
  const std::string twice = rest.substr(0, rest.size() - first.size());
  CHECK(twice.substr(0, twice.size() / 2) == twice.substr(twice.size() / 2));
  CHECK(twice.substr(0, twice.size() / 2) != first);
}

TEST_CASE("a message may go on after a backslash or between lines of three quotes") {
  for (const std::string& keys : {std::string("hello\\\rworld\r"), std::string("\"\"\"\rhello\rworld\r\"\"\"\r"),
                                  std::string("\"\"\"hello\rworld\"\"\"\r")}) {
    Terminal t(short_answers(), true);
    REQUIRE(t.prompts());
    t.type(keys);
    CHECK(t.shows("[stopped after -n tokens]"));
    REQUIRE(t.prompts());
    t.type("/exit\r");
    REQUIRE(t.ends() == 0);
    CHECK(t.answers() == answer_to("hello\nworld"));
  }
}

TEST_CASE("/read sends a file, and says when it cannot") {
  const std::string path = write_file("message.txt", "hello world");
  Terminal t(short_answers(), true);
  REQUIRE(t.prompts());
  t.type("/read " + path + "\r");
  REQUIRE(t.shows("[stopped after -n tokens]"));
  t.type("/read " + path + ".absent\r");
  CHECK(t.shows("No such file"));
  t.type("/read\r");
  CHECK(t.shows("needs a file name"));
  t.type("/exit\r");
  REQUIRE(t.ends() == 0);
  CHECK(t.answers() == answer_to("hello world"));
}

TEST_CASE("a line that begins with a path is a message") {
  Terminal t(short_answers(), true);
  REQUIRE(t.prompts());
  t.type("/usr/bin/env is what?\r");
  REQUIRE(t.shows("[stopped after -n tokens]"));
  t.type("/exit\r");
  REQUIRE(t.ends() == 0);
  CHECK(t.answers() == answer_to("/usr/bin/env is what?"));
}

TEST_CASE("lines can be edited, recalled, and hold other scripts") {
  Terminal t(short_answers(), true, {"LANG=C"});  // as in a bare container
  REQUIRE(t.prompts());
  t.type("hallo w\xc3\xb6rld\x1b[D\x1b[D\x1b[D\x7fo\r");  // three to the left, the umlaut away, an o instead
  REQUIRE(t.shows("[stopped after -n tokens]"));
  REQUIRE(t.prompts());
  t.type("/clear\r");
  REQUIRE(t.prompts());
  t.type("\x1b[A\x1b[A\r");  // up, up
  REQUIRE(t.shows("[stopped after -n tokens]"));
  t.type("/clear\r");
  REQUIRE(t.prompts());
  t.type("gr\xc3\xbc\xc3\x9f dich\r");
  REQUIRE(t.shows("[stopped after -n tokens]"));
  t.type("/exit\r");
  REQUIRE(t.ends() == 0);
  const std::string edited = answer_to("hallo world");
  CHECK(t.answers() == edited + edited + answer_to("gr\xc3\xbc\xc3\x9f dich"));
}

TEST_CASE("Ctrl-C stops the answer and returns to the prompt; twice at the prompt leaves with status 130") {
  Terminal t({tiny_long(), "--ignore-eos", "-s", "1"}, true);
  REQUIRE(t.prompts());
  t.type("hello\r");
  while (t.answers().size() < 20) REQUIRE_FALSE(t.shows("> ", 0.05));
  t.type(kCtrlC);
  REQUIRE(t.prompts());
  t.type("/stats\r");
  CHECK(t.shows("interrupted"));
  REQUIRE(t.prompts());
  t.type("half a line" + kCtrlC);
  REQUIRE(t.shows("Ctrl-C once more"));
  REQUIRE(t.prompts());
  t.type("/stats\r");  // anything else in between: it counts from the start again, and the half line is gone
  CHECK(t.shows("interrupted"));
  REQUIRE(t.prompts());
  t.type(kCtrlC);
  REQUIRE(t.shows("Ctrl-C once more"));
  REQUIRE(t.prompts());
  t.type(kCtrlC);
  CHECK(t.ends() == 130);
}

TEST_CASE("Ctrl-C twice during an answer leaves with status 130") {
  // A step of many tokens on the slow device: the first Ctrl-C is obeyed after it, the second at once.
  std::string text;
  for (int i = 0; i < 8000; ++i) text += " world";
  Terminal t({tiny_long(), "--ignore-eos", "-s", "1", "--device", "ref", "-b", "8192", "-ub", "8192"}, true);
  REQUIRE(t.prompts());
  t.type("/read " + write_file("world.txt", text) + "\r");
  REQUIRE_FALSE(t.shows("> ", 1));
  t.type(kCtrlC);
  REQUIRE_FALSE(t.shows("> ", 0.1));
  // Where others keep the machine busy, the first one may come before the program listens, or two may be as one.
  int status = kTimedOut;
  for (int i = 0; i < 20 && status == kTimedOut; ++i) t.type(kCtrlC), status = t.ends(1);
  CHECK(status == 130);
  CHECK(t.answers().empty());
  CHECK_FALSE(contains(t.screen(), "Ctrl-C once more"));  // as at the prompt
}

TEST_CASE("a full context says so and the conversation can be cleared") {
  Terminal t({tiny_bpe(), "--temp", "0", "--ignore-eos", "-c", "64"}, true);
  REQUIRE(t.prompts());
  t.type("hello\r");
  REQUIRE(t.shows("the context of 64 tokens is full"));
  REQUIRE(t.prompts());
  t.type("hello\r");
  REQUIRE(t.shows("error:"));  // no room for another message
  t.type("/clear\r");
  t.type("hello\r");
  REQUIRE(t.shows("the context of 64 tokens is full"));
  t.type("/exit\r");
  CHECK(t.ends() == 0);
}

TEST_CASE("a system message changes the answer, from the command line and from /system") {
  const std::string plain = answer_to("hello"), with_system = answer_to("hello", {"-sys", "you is the model"});
  CHECK(plain != with_system);
  CHECK(answer_to("hello", {"-sysf", write_file("system.txt", "you is the model")}) == with_system);
  Terminal t(short_answers(), true);
  REQUIRE(t.prompts());
  t.type("/system you is the model\r");
  REQUIRE(t.prompts());
  t.type("hello\r");
  REQUIRE(t.shows("[stopped after -n tokens]"));
  t.type("/exit\r");
  REQUIRE(t.ends() == 0);
  CHECK(t.answers() == with_system);
}

TEST_CASE("-p at a terminal is the first message of the conversation") {
  Terminal t(short_answers({"-p", "hello"}), true);
  REQUIRE(t.shows("[stopped after -n tokens]"));
  REQUIRE(t.prompts());
  t.type("/exit\r");
  REQUIRE(t.ends() == 0);
  CHECK(t.answers() == answer_to("hello"));
}

TEST_CASE("-no-cnv at a terminal completes, and needs a prompt") {
  Terminal t(short_answers({"-no-cnv", "-p", "hello"}), true);
  CHECK(t.ends() == 0);
  CHECK(t.answers() == run(short_answers({"-p", "hello"})).out);
  Terminal none(short_answers({"-no-cnv"}));
  CHECK(none.ends() == 2);
  CHECK(contains(none.screen(), "no prompt given"));
  Terminal without({tiny_without_template(), "-n", "1"});
  CHECK(without.ends() == 2);
  CHECK(contains(without.screen(), "no prompt given"));
  CHECK(contains(without.screen(), "--chat-template NAME"));
}

TEST_CASE("-st answers one message from -p, -f or a pipe") {
  const std::string want = answer_to("hello world");
  CHECK(run(short_answers({"-st", "-f", write_file("one.txt", "hello world")})).out == want);
  Call pipe;
  pipe.args = short_answers({"-st"});
  pipe.input = "hello world";
  CHECK(run(pipe).out == want);
  pipe.input = "hello\nworld";  // all of it is one message
  CHECK(run(pipe).out == answer_to("hello\nworld"));
}

TEST_CASE("-cnv over a pipe takes every line as a message") {
  Call pipe;
  pipe.args = short_answers({"-cnv"});
  pipe.input = "hello\n/clear\nhello\n/exit\nnever\n";
  const Outcome o = run(pipe);
  INFO(o.err);
  CHECK(o.status == 0);
  CHECK(o.out == answer_to("hello") + answer_to("hello"));
  CHECK_FALSE(contains(o.err, "> "));
  pipe.input = "hello";  // the end of input leaves, too
  CHECK(run(pipe).out == answer_to("hello"));
}

TEST_CASE("chatting without a template is refused with the names of the built-in ones") {
  for (const char* flag : {"-cnv", "-st"}) {
    const Outcome o = run({tiny_without_template(), flag, "-p", "hello", "-n", "1"});
    INFO(o.err);
    CHECK(o.status == 2);
    CHECK(contains(o.err, "chatml"));
  }
  CHECK(run({tiny_without_template(), "-st", "-p", "hello", "-n", "1", "--chat-template", "chatml"}).status == 0);
  const Outcome wrong = run({tiny_without_template(), "-st", "-p", "hello", "-n", "1", "--chat-template", "chatmul"});
  CHECK(wrong.status == 2);
  CHECK(contains(wrong.err, "chatml"));
}

TEST_CASE("a template from a file, with variables, is used") {
  const std::string path = write_file("shout.jinja", "{% for m in messages %}{{ m.content }}{{ mark }}{% endfor %}");
  const Outcome o = run(short_answers(
      {"-st", "-p", "hello", "--chat-template-file", path, "--chat-template-kwargs", "{\"mark\": \" world\"}"}));
  CHECK(o.out == run(short_answers({"-p", "hello world"})).out + "\n");
  const Outcome raises = run(short_answers({"-st", "-p", "hello", "--chat-template-file",
                                            write_file("raise.jinja", "{{ raise_exception('not like this') }}")}));
  CHECK(raises.status == 1);
  CHECK(contains(raises.err, "not like this"));
  CHECK(raises.out.empty());
}
