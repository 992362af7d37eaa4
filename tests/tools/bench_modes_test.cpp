// `infer bench` over time, against an earlier run, and from the start of the program. Nothing here depends on how quick
// the machine is.
#include <nlohmann/json.hpp>
#include <random>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/baseline.h"
#include "tools/startup_phases.h"
#include "tools/sustained.h"

using namespace infer::test;
using namespace infer::tools;
using nlohmann::json;

namespace {

std::vector<std::string> bench(std::vector<std::string> more) {
  std::vector<std::string> args = {"bench", "-m", tiny_bpe(), "-t", "1", "-p", "8", "-n", "2", "-r", "3"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

/// Results of this machine, kept once.
const std::string& kept() {
  static const std::string path = [] {
    const std::string made = path_in_folder("base.json");
    const Outcome o = run(bench({"--save", made}));
    INFO(o.err);
    REQUIRE(o.status == 0);
    return made;
  }();
  return path;
}

/// The same with every speed times `factor`, and whatever else `edit` does.
template <class Edit>
std::string edited(const std::string& name, double factor, Edit edit) {
  json all = json::parse(read_file(kept()));
  for (json& r : all)
    for (json& rate : r["samples_ts"]) rate = rate.get<double>() * factor;
  edit(all);
  return write_file(name, all.dump());
}

std::string edited(const std::string& name, double factor) {
  return edited(name, factor, [](json&) {});
}

}  // namespace

TEST_CASE("what is kept is what -o json prints") {
  const json all = json::parse(read_file(kept()));
  REQUIRE(all.size() == 2);
  CHECK(all[0]["samples_ts"].size() == 3);
  CHECK(all[0]["n_prompt"] == 8);
  CHECK_FALSE(all[0].contains("verdict"));
  CHECK(run({"bench", "-m", tiny_bpe(), "-n", "0", "-p", "8", "-r", "1", "--save", "/nonexistent/x"}).status == 1);
}

TEST_CASE("slower beyond tolerance and noise ends with status 5, and says by how much") {
  const Outcome o = run(bench({"--against", edited("fast.json", 1000), "--tolerance", "5%"}));
  INFO(o.out << o.err);
  CHECK(o.status == 5);
  const auto lines = lines_of(o.out);
  REQUIRE(lines.size() == 6);
  CHECK(contains(lines[0], "old"));
  CHECK(contains(lines[0], "verdict"));
  for (const size_t row : {2, 3}) {
    const auto cells = cells_of(lines[row]);
    CHECK(cells.back() == "slower");
    CHECK(cells[cells.size() - 2].rfind("-99.", 0) == 0);
  }
  CHECK(contains(o.err, "slower than in "));
  CHECK(contains(o.err, "2 of the tests"));
}

TEST_CASE("faster is no failure, and neither is what cannot be decided") {
  const Outcome faster = run(bench({"--against", edited("slow.json", 0.001), "-o", "json"}));
  INFO(faster.err);
  CHECK(faster.status == 0);
  for (const json& r : json::parse(faster.out)) {
    CHECK(r["verdict"] == "faster");
    CHECK(r["change_low"] > 10);
    CHECK(r["change_low"] <= r["change"]);
    CHECK(r["change"] <= r["change_high"]);
  }
  const std::string wide = edited("wide.json", 1, [](json& all) {
    for (json& r : all) r["samples_ts"] = {0.001, 1e9, 1e9 + 1};
  });
  const Outcome noisy = run(bench({"--against", wide, "-o", "json"}));
  CHECK(noisy.status == 0);
  for (const json& r : json::parse(noisy.out)) CHECK(r["verdict"] == "noisy");
}

TEST_CASE("other models, devices and tests are no comparison") {
  const auto refused = [](const std::string& file, std::vector<std::string> more, const char* says) {
    more.insert(more.begin(), {"--against", file});
    const Outcome o = run(bench(more));
    INFO(o.err);
    CHECK(o.status == 2);
    CHECK(o.out.empty());
    CHECK(contains(o.err, says));
    CHECK(lines_of(o.err).size() == 1);
  };
  refused(kept(), {"-p", "16"}, "does not hold this test");
  refused(kept(), {"-ctk", "f32"}, "does not hold this test");
  refused(kept(), {"-d", "32"}, "does not hold this test");
  refused(edited("threads.json", 1,
                 [](json& all) {
                   for (json& r : all) r["n_threads"] = 3;
                 }),
          {}, "-t 3");
  refused(edited("cpu.json", 1,
                 [](json& all) {
                   for (json& r : all) r["cpu_info"] = "Abacus";
                 }),
          {}, "another device");
  refused(edited("size.json", 1,
                 [](json& all) {
                   for (json& r : all) r["model_size"] = 1;
                 }),
          {}, "no test of this model");
  refused(edited("few.json", 1,
                 [](json& all) {
                   for (json& r : all) r["samples_ts"] = {1.0, 2.0};
                 }),
          {}, "too few repetitions");
  refused(kept(), {"-r", "2"}, "too few repetitions");
}

TEST_CASE("a file of results is not trusted") {
  const auto edit = [](const char* name, auto change) { return edited(std::string("bad_") + name, 1, change); };
  std::vector<std::pair<std::string, const char*>> files = {
      {write_file("not.json", "[{\"model_type\""), "no JSON"},
      {write_file("empty.json", ""), "no JSON"},
      {write_file("object.json", "{}"), "not a list"},
      {write_file("none.json", "[]"), "not a list"},
      {write_file("numbers.json", "[1]"), "not an object"},
      {write_file("deep.json", std::string(100000, '[')), "no JSON"},
      {edit("missing", [](json& a) { a[1].erase("model_size"); }), "record 2, model_size: is missing"},
      {edit("negative", [](json& a) { a[0]["n_gen"] = -1; }), "n_gen: out of range"},
      {edit("huge", [](json& a) { a[0]["n_gen"] = UINT64_MAX; }), "n_gen: out of range"},
      {edit("real", [](json& a) { a[0]["n_gen"] = 1.5; }), "n_gen: not an integer"},
      {edit("text", [](json& a) { a[0]["fusion"] = "on"; }), "fusion: neither true nor false"},
      {edit("list", [](json& a) { a[0]["samples_ts"] = 1; }), "samples_ts: not a list"},
      {edit("zero",
            [](json& a) {
              a[0]["samples_ts"] = {0, 1, 2};
            }),
       "samples_ts: not numbers above 0"},
      {edit("many", [](json& a) { a[0]["samples_ts"] = std::vector<double>(1001, 1.0); }), "samples_ts: not a list"},
      {edit("twice", [](json& a) { a.push_back(a[0]); }), "record 3: the same test twice"},
      {edit("kind", [](json& a) { a[0]["model_type"] = {1}; }), "model_type: not a text"}};
  for (const auto& [file, says] : files) {
    const Outcome o = run(bench({"--against", file}));
    INFO(file << ": " << o.err);
    CHECK(o.status == 2);
    CHECK(contains(o.err, says));
    CHECK(lines_of(o.err).size() == 1);
  }
  CHECK(run(bench({"--against", path_in_folder("absent.json")})).status == 1);
}

TEST_CASE("damaged files of results are refused by an error of ours, or are results") {
  const std::string whole = read_file(kept());
  std::mt19937 random(3);
  int n_refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = whole;
    const auto at = [&] { return random() % bytes.size(); };
    switch (round % 4) {
      case 0:
        bytes[at()] = static_cast<char>(random());
        break;
      case 1:
        bytes.erase(at(), 1 + random() % 40);
        break;
      case 2:
        bytes.insert(at(), bytes.substr(at(), 1 + random() % 40));
        break;
      default:
        bytes.resize(at());
    }
    const std::string path = write_file("damaged.json", bytes);
    try {
      Baseline base(path);
    } catch (const infer::Error& e) {
      ++n_refused;
      CHECK(e.kind() == infer::ErrorKind::usage);
      CHECK(std::string(e.what()).find('\n') == std::string::npos);
    }
  }
  CHECK(n_refused > 1000);
}

TEST_CASE("a long test has a line to an interval and ends with first against last") {
  const Outcome o = run(bench({"--duration", "1200ms"}));
  INFO(o.out << o.err);
  REQUIRE(o.status == 0);
  CHECK(contains(o.out, "pp8, CPU (1 thread)"));
  CHECK(contains(o.out, "tg2, CPU (1 thread)"));
  CHECK(contains(o.out, "first "));
  CHECK(contains(o.out, "held back by: "));
  CHECK(contains(o.out, "energy: "));
  CHECK(contains(o.out, "build: "));
  const json all = json::parse(run(bench({"--duration", "100ms", "-o", "json"})).out);
  REQUIRE(all.size() == 2);
  for (const json& r : all) {
    CHECK(r["intervals"].size() == 1);
    CHECK(r["duration_s"] >= 0.1);
    CHECK(r["first_ts"] == r["last_ts"]);
    CHECK(r["avg_ts"] > 0);
  }
}

TEST_CASE("intervals are a twentieth of the whole, from 1 to 10 seconds") {
  CHECK(interval_seconds(5) == 1);
  CHECK(interval_seconds(60) == 3);
  CHECK(interval_seconds(3600) == 10);
}

TEST_CASE("the end of a long test says what was lost, why, and what it cost") {
  SustainedInterval a, b, c;
  a.tokens = b.tokens = c.tokens = 100;
  a.timed_seconds = 1, b.timed_seconds = 1.6, c.timed_seconds = 1.25;
  a.end = 1, b.end = 3, c.end = 5;
  b.held_back = {"power cap", "thermal slowdown"}, c.held_back = {"power cap"};
  const std::string plain = sustained_summary({a, b, c}, "no counter here");
  CHECK(contains(plain, "first 100.00 t/s, last 80.00 (-20.0 %), slowest 62.50 (-37.5 %), over 5 s"));
  CHECK(contains(plain, "held back by: power cap, in 2 of 3 intervals"));
  CHECK(contains(plain, "held back by: thermal slowdown, in 1 of 3 intervals"));
  CHECK(contains(plain, "energy: left out, no counter here"));
  a.watts = b.watts = c.watts = 200;
  const std::string powered = sustained_summary({a, b, c}, "");
  CHECK(contains(powered, "energy: 2.567 J/token"));
  CHECK(a.joules_per_token() == 2.0);
  CHECK(sustained_summary({}, "").empty());
}

TEST_CASE("joules have a column where they are asked for, and a reason where they are not told") {
  const Outcome o = run(bench({"--energy"}));
  INFO(o.err);
  REQUIRE(o.status == 0);
  const auto lines = lines_of(o.out);
  CHECK(cells_of(lines[0]).back() == "J/token");
  if (!o.err.empty()) CHECK(contains(o.err, "J/token cannot be told: "));
}

TEST_CASE("a start is told by phases that make up the whole") {
  const Outcome o = run({"bench", "-m", tiny_bpe(), "-t", "1", "-r", "1", "--startup", "-o", "json"});
  INFO(o.out << o.err);
  REQUIRE(o.status == 0);
  const json r = json::parse(o.out)[0];
  double sum = 0;
  for (const char* phase :
       {"exec", "parse", "device", "read", "convert", "pack", "engine", "capture", "prefill", "first_token"}) {
    INFO(phase);
    const double ms = r.at(std::string("warm_") + phase + "_ms");
    CHECK(ms >= 0);
    CHECK(r.at(std::string("cold_") + phase + "_ms") >= 0);
    sum += ms;
  }
  CHECK(r["warm_read_ms"] == 0);
  CHECK(r["warm_prefill_ms"] > 0);
  CHECK(sum > 0);
  CHECK(sum <= r["warm_total_ms"].get<double>() * 1.001);
  const Outcome table = run({"bench", "-m", tiny_bpe(), "-t", "1", "-r", "1", "--startup"});
  CHECK(contains(table.out, "| first token "));
  CHECK(contains(table.out, "in all"));
  CHECK(contains(table.out, "\ncold: "));
  const Outcome absent = run({"bench", "-m", path_in_folder("absent.gguf"), "--startup"});
  CHECK(absent.status == 1);
  CHECK(contains(absent.err, "No such file"));
}

TEST_CASE("what a cold cache costs is the reading, in whichever phase it was waited for") {
  Start warm;
  warm.exec = 2, warm.open = 3, warm.tokenizer = 5, warm.weights = 20, warm.total = 40;
  Start cold = warm;
  cold.open = 13, cold.convert = 4, cold.weights = 120, cold.total = 154;
  const auto phases = start_phases({cold}, {warm, warm, warm});
  const auto phase = [&](const std::string& name) {
    for (const StartPhase& p : phases)
      if (p.name == name) return p;
    FAIL("no phase " << name);
    return StartPhase{};
  };
  CHECK(phase("read").cold == 114);
  CHECK(phase("read").warm == 0);
  CHECK(phase("parse").cold == 8);
  CHECK(phase("pack").cold == 20);
  CHECK(phase("convert").cold == 0);
  CHECK(phase("in all").cold == 154);
  CHECK_THROWS(parse_marks("", 0));
  CHECK_THROWS(parse_marks("{\"main_ns\": \"soon\"}", 0));
}

TEST_CASE("modes of bench that say different things are refused together") {
  const std::string m = tiny_bpe();
  check_refusals({{{"bench", "-m", m, "--startup", "--duration", "1s"}, 2, "--startup"},
                  {{"bench", "-m", m, "--duration", "1s", "--save", "never"}, 2, "--duration"},
                  {{"bench", "-m", m, "--levels", "q8_0", "--energy"}, 2, "--levels"},
                  {{"bench", "-m", m, "--duration", "1d"}, 2, "--duration"},
                  {{"bench", "-m", m, "--tolerance", "all"}, 2, "--tolerance"},
                  {{"bench", "-m", m, "-m", m, "--startup"}, 2, "one model at a time"}},
                 "never");
}
