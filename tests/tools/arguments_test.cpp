// The flag table: forms of a flag, numbers, suggestions, refusals, environment, help.
#include "tools/arguments.h"

#include <cstdlib>

#include "tests/catch.h"

using namespace infer;
using namespace infer::tools;

namespace {

struct Sample {
  std::string model, text;
  int64_t count = 7;
  float share = 0.5f;
  bool on = false;
  std::vector<std::string> positional;
  Arguments arguments{"sample MODEL", "A table for tests.\n"};

  Sample() {
    arguments.positional("MODEL", [this](const std::string& t) { positional.push_back(t); });
    arguments.group("First");
    arguments.text({"-m", "--model"}, "FILE", "the model", &model);
    arguments.integer({"-n", "--predict", "--n-predict"}, "N", "how many", &count, -1, 100);
    arguments.group("Second");
    arguments.real({"--temp", "--temperature"}, "X", "how hot", &share, 0, 2);
    arguments.flag({"--on"}, "switches it on", &on);
    arguments.flag({"--no-on"}, "switches it off", &on, false);
    arguments.text({"--text"}, "T", "any text", &text);
    arguments.ignored({"--color"}, false);
    arguments.ignored({"--old", "-o"}, true);
  }
  bool parse(const std::vector<std::string>& args) { return arguments.parse(args); }
  std::string refusal(const std::vector<std::string>& args) {
    try {
      parse(args);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.what();
    }
    return "";
  }
};

struct Variable {
  const char* name;
  Variable(const char* n, const char* value) : name(n) { setenv(n, value, 1); }
  ~Variable() { unsetenv(name); }
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a flag has short and long names, and takes its value from the next word or after =") {
  Sample s;
  REQUIRE(s.parse({"-m", "a.gguf", "--n-predict=12", "--temperature", "1.5", "--on", "--text=a=b=c"}));
  CHECK(s.model == "a.gguf");
  CHECK(s.count == 12);
  CHECK(s.share == 1.5f);
  CHECK(s.on);
  CHECK(s.text == "a=b=c");
}

TEST_CASE("the last of several values counts, and pairs switch on and off") {
  Sample s;
  REQUIRE(s.parse({"-n", "1", "--predict", "2", "--on", "--no-on"}));
  CHECK(s.count == 2);
  CHECK_FALSE(s.on);
}

TEST_CASE("values may look like flags, be negative or be empty") {
  Sample s;
  REQUIRE(s.parse({"--text", "--on", "-n", "-1", "-m", ""}));
  CHECK(s.text == "--on");
  CHECK(s.count == -1);
  CHECK(s.model.empty());
  CHECK_FALSE(s.on);
}

TEST_CASE("words that are no flags are positional, a single dash too") {
  Sample s;
  REQUIRE(s.parse({"model.gguf", "-n", "3", "-"}));
  CHECK(s.positional == std::vector<std::string>{"model.gguf", "-"});
}

TEST_CASE("flags for old habits are taken and have no effect") {
  Sample s;
  CHECK(s.parse({"--color", "--old", "x", "-o", "y"}));
}

TEST_CASE("help asks for help wherever it stands") {
  Sample s;
  CHECK_FALSE(s.parse({"-n", "3", "--help"}));
  CHECK_FALSE(s.parse({"-h"}));
}

TEST_CASE("an unknown flag names the nearest one") {
  Sample s;
  CHECK(has(s.refusal({"--tempp", "1"}), "--tempp: unknown flag; did you mean --temp?"));
  CHECK(has(s.refusal({"--modle", "1"}), "did you mean --model?"));
  CHECK(has(s.refusal({"--modle=x"}), "did you mean --model?"));
  CHECK(has(s.refusal({"--n_predict", "1"}), "did you mean --n-predict?"));
  const std::string far = s.refusal({"--quantum-entanglement"});
  CHECK(has(far, "unknown flag"));
  CHECK_FALSE(has(far, "did you mean"));
}

TEST_CASE("text of a bad flag is escaped and shortened") {
  Sample s;
  const std::string message = s.refusal({"--\x1b[2J" + std::string(5000, 'x')});
  CHECK_FALSE(has(message, "\x1b"));
  CHECK(message.size() < 400);
}

TEST_CASE("flags of llama.cpp that infer does not have are refused by name") {
  for (const char* flag : {"--mirostat", "--grammar", "-j", "-hf", "--lora", "-sm", "-md", "--samplers", "--draft-max",
                           "--dry-multiplier", "--xtc-probability", "--context-shift", "--keep", "-np", "--lora"}) {
    Sample s;
    const std::string message = s.refusal({flag, "1"});
    INFO(flag);
    CHECK(has(message, std::string(flag) + ": this flag of llama.cpp is not available"));
  }
}

TEST_CASE("bad numbers name the flag, what was found and what is allowed") {
  Sample s;
  for (const char* bad : {"", "x", "1x", "1.5", " 1", "0x10", "99999999999999999999", "--", "+-1"}) {
    const std::string message = s.refusal({"-n", bad});
    INFO(bad << " -> " << message);
    CHECK(has(message, "--n-predict"));
    CHECK(has(message, "found '" + std::string(bad) + "'"));
    CHECK(has(message, "an integer from -1 to 100"));
  }
  CHECK(has(s.refusal({"-n", "101"}), "allowed an integer from -1 to 100"));
  CHECK(has(s.refusal({"-n", "-2"}), "found '-2'"));
  for (const char* bad : {"", "nan", "inf", "1e999", "2.1", "-0.1", "1,5", "hot"})
    CHECK(has(s.refusal({"--temp", bad}), "a number from 0 to 2"));
  CHECK(s.parse({"-n", "+5"}));
  CHECK(s.count == 5);
}

TEST_CASE("a missing value and a value too many are errors") {
  Sample s;
  CHECK(has(s.refusal({"-m"}), "-m: needs a value: FILE"));
  CHECK(has(s.refusal({"--on=1"}), "--on: this flag takes no value"));
  CHECK(has(s.refusal({"--color=on"}), "takes no value"));
}

TEST_CASE("a command without positional arguments refuses them") {
  Sample s;
  s.arguments = Arguments("x", "");
  CHECK(has(s.refusal({"word"}), "'word': unexpected argument"));
}

TEST_CASE("every long name can be set in the environment, and the command line beats it") {
  const Variable a("INFER_PREDICT", "11"), b("INFER_TEMPERATURE", "1"), c("INFER_ON", "1"), d("INFER_TEXT", "from env");
  Sample s;
  REQUIRE(s.parse({"--text", "from args"}));
  CHECK(s.count == 11);
  CHECK(s.share == 1.0f);
  CHECK(s.on);
  CHECK(s.text == "from args");
}

TEST_CASE("a switch in the environment is off for 0, off, no, false and nothing") {
  for (const char* off : {"0", "off", "no", "false", ""}) {
    const Variable v("INFER_ON", off);
    Sample s;
    REQUIRE(s.parse({}));
    CHECK_FALSE(s.on);
    s.on = true;
    REQUIRE(s.parse({}));
    CHECK(s.on == !*off);  // --no-on, but the empty text is as if the variable were not there
    REQUIRE(s.parse({"--on"}));
    CHECK(s.on);
  }
}

TEST_CASE("a bad value in the environment names the variable") {
  const Variable v("INFER_N_PREDICT", "many");
  Sample s;
  CHECK(has(s.refusal({}), "environment variable INFER_N_PREDICT: --n-predict: bad value, found 'many'"));
}

TEST_CASE("help is grouped, and leaves out what is only there for old habits") {
  const std::string help = Sample().arguments.help();
  CHECK(help.rfind("usage: sample MODEL\n", 0) == 0);
  CHECK(has(help, "\nFirst:\n  -m, --model FILE"));
  CHECK(help.find("First:") < help.find("Second:"));
  CHECK(help.find("First:") == help.rfind("First:"));
  CHECK_FALSE(has(help, "--color"));
  CHECK_FALSE(has(help, "--old"));
}

TEST_CASE("lists of ids may have spaces, newlines and brackets") {
  CHECK(parse_ids("--ids", "[1, 2,3]\n") == std::vector<int32_t>{1, 2, 3});
  CHECK(parse_ids("--ids", "").empty());
  CHECK(parse_ids("--ids", "2147483647") == std::vector<int32_t>{2147483647});
  for (const char* bad : {"1,x", "-1", "1.5", "2147483648", "1;2"}) CHECK_THROWS_AS(parse_ids("--ids", bad), Error);
}

TEST_CASE("the nearest name must be near") {
  CHECK(nearest("--tmep", {"--temp", "--top-k"}) == "--temp");
  CHECK(nearest("benhc", {"bench", "run"}) == "bench");
  CHECK(nearest("zzzzzzzz", {"bench", "run"}).empty());
  CHECK(nearest("", {}).empty());
}
