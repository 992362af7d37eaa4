// `infer bench --autotune` without a GPU: what is chosen from made-up times, the file that keeps it, and what is
// refused.
#include "tools/autotune.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/cuda/crossovers.h"
#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/crossover_file.h"

using namespace infer::test;
using namespace infer::tools;
using infer::Crossover;
using nlohmann::json;

namespace {

const std::vector<int64_t> kRows = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
const Crossover kUsual{"NVIDIA H200", "Q4_K", 2, 3, 129};

/// Three rounds of which the median is what `seconds` says; 0: there is no such way.
template <class Fn>
std::vector<TunedRows> times(Fn seconds) {
  std::vector<TunedRows> table;
  for (const int64_t rows : kRows) {
    TunedRows row{rows, {}};
    for (const TunedWay way : kTunedWays) {
      const double s = way == TunedWay::program && rows > 4 ? 0 : seconds(way, rows);
      if (s > 0) row.seconds[static_cast<size_t>(way)] = {1.3 * s, s, 0.9 * s};
    }
    table.push_back(row);
  }
  return table;
}

/// As the built-in numbers have it: each way is the quickest where they choose it.
double as_usual(TunedWay way, int64_t rows) { return way == way_of(kUsual, rows) ? 1 : 1.5; }

bool same(const Crossover& a, const Crossover& b) {
  return a.device == b.device && a.format == b.format && a.program_most == b.program_most &&
         a.few_least == b.few_least && a.wide_least == b.wide_least;
}

std::vector<Crossover> some_rows() { return {{"NVIDIA H200", "Q4_K", 1, 4, 96}, {"NVIDIA H200", "Q6_K", 1, 4, 96}}; }

std::string problem_of(const std::string& text) {
  const std::string path = write_file("broken.json", text);
  const SavedCrossovers saved = read_crossovers(path, "1");
  CHECK(saved.rows.empty());
  return saved.problem;
}

std::string with_row(const json& row) { return json{{"infer", "crossovers"}, {"rows", json::array({row})}}.dump(); }

}  // namespace

TEST_CASE("autotune: ways by their numbers are those that the backend takes") {
  using infer::cuda::Way;
  for (const Crossover& c : {kUsual, Crossover{"", "Q4_K", 4, 9, 33}, Crossover{"", "Q4_K", 0, 64, 8},
                             forced(TunedWay::few), forced(TunedWay::wide), forced(TunedWay::matvec)})
    for (int64_t m = 1; m <= 128; ++m) {
      const TunedWay way = way_of(c, m);
      if (m <= c.program_most) {
        CHECK(way == TunedWay::program);
        continue;
      }
      const Way taken = infer::cuda::choose_way(m, infer::cuda::Act::automatic, {true, true, false},
                                                {c.program_most, c.few_least, c.wide_least});
      const TunedWay wanted = taken == Way::wide  ? TunedWay::wide
                              : taken == Way::few ? TunedWay::few
                                                  : TunedWay::matvec;
      REQUIRE(way == wanted);
    }
  for (const TunedWay way : kTunedWays)
    for (const int64_t m : {1, 4}) CHECK(way_of(forced(way), m) == way);
}

TEST_CASE("autotune: where the built-in numbers are best, they stay") {
  CHECK(same(choose_crossovers(times(as_usual), kUsual), kUsual));
}

TEST_CASE("autotune: each crossover moves to where the times cross") {
  const Crossover wanted{"NVIDIA H200", "Q4_K", 4, 8, 48};
  const auto seconds = [&](TunedWay way, int64_t rows) { return way == way_of(wanted, rows) ? 1 : 1.2; };
  CHECK(same(choose_crossovers(times(seconds), kUsual), wanted));
  const auto never_few = [](TunedWay way, int64_t rows) {
    return way == TunedWay::few ? 9 : way == (rows < 6 ? TunedWay::matvec : TunedWay::wide) ? 1 : 1.2;
  };
  const Crossover chosen = choose_crossovers(times(never_few), kUsual);
  CHECK(chosen.program_most == 0);
  CHECK(way_of(chosen, 4) == TunedWay::matvec);
  CHECK(way_of(chosen, 6) == TunedWay::wide);
}

TEST_CASE("autotune: ties and gains below two per cent change nothing, a real one beside them does") {
  const auto tie = [](TunedWay, int64_t) { return 1.0; };
  CHECK(same(choose_crossovers(times(tie), kUsual), kUsual));
  const auto noise = [](TunedWay way, int64_t rows) {
    return way == way_of(kUsual, rows) ? 1.0 : way == TunedWay::wide ? 0.985 : 1.01;
  };
  CHECK(same(choose_crossovers(times(noise), kUsual), kUsual));
  // At 64 rows wide saves 1 %, from 96 on 10 %: the crossover is 96.
  const auto late = [](TunedWay way, int64_t rows) {
    if (way == TunedWay::wide) return rows >= 96 ? 0.9 : rows == 64 ? 0.99 : 1.5;
    return as_usual(way, rows);
  };
  CHECK(same(choose_crossovers(times(late), kUsual), Crossover{"NVIDIA H200", "Q4_K", 2, 3, 96}));
}

TEST_CASE("autotune: one slow round does not decide") {
  auto table = times(as_usual);
  for (TunedRows& row : table)
    if (row.rows >= 32) row.seconds[static_cast<size_t>(TunedWay::few)] = {1, 1, 40};
  CHECK(same(choose_crossovers(table, kUsual), kUsual));
  CHECK(*table.back().median(TunedWay::few) == 1);
}

TEST_CASE("autotune: one crossover holds for all rows beyond it, so that the most is saved in all") {
  // Wide is better at 32 and worse at 48 to 128: a crossover at 32 would lose more than it gains.
  const auto dent = [](TunedWay way, int64_t rows) {
    if (way == TunedWay::wide) return rows == 32 ? 0.8 : 1.2;
    return as_usual(way, rows);
  };
  CHECK(same(choose_crossovers(times(dent), kUsual), kUsual));
}

TEST_CASE("autotune: ways that there are not are not chosen") {
  const Crossover plain{"NVIDIA H200", "BF16", 2, 129, 3};
  const auto seconds = [](TunedWay way, int64_t rows) {
    if (way == TunedWay::few) return 0.0;
    return way == (rows <= 4 ? TunedWay::program : TunedWay::wide) ? 1.0 : 1.3;
  };
  CHECK(same(choose_crossovers(times(seconds), plain), Crossover{"NVIDIA H200", "BF16", 4, 129, 3}));
  const std::string text = autotune_text("md", times(seconds), plain, plain);
  CHECK(contains(text, "| -"));
}

TEST_CASE("autotune: the table marks the best and says what changes") {
  const Crossover chosen{"NVIDIA H200", "Q4_K", 2, 3, 96};
  const auto late = [](TunedWay way, int64_t rows) {
    return way == TunedWay::wide && rows >= 96 ? 0.9 : as_usual(way, rows);
  };
  const std::string text = autotune_text("md", times(late), kUsual, chosen);
  const auto lines = lines_of(text);
  const auto last = cells_of(lines[15]);
  CHECK(last == std::vector<std::string>{"128", "-", "1500.000", "1000.000", "900.000 *", "few", "wide", "-10.0 %"});
  CHECK(cells_of(lines[2])[1] == "1000.000 *");
  CHECK(contains(text, "built in: one kernel up to 2 rows, few from 3, wide from no measured number of rows"));
  CHECK(contains(text, "wide from 96 rows"));
  const json rows = json::parse(autotune_text("json", times(late), kUsual, chosen));
  REQUIRE(rows.size() == kRows.size());
  CHECK(rows[13]["chosen"] == "wide");
  CHECK(rows[13]["saved"] == Approx(0.1));
  CHECK(rows[13]["program_ms"].is_null());
  CHECK(rows[0]["best"] == "program");
}

TEST_CASE("crossover file: what is written is read again by the same build, beside other devices") {
  const std::string path = path_in_folder("new/deep/crossovers.json");
  CHECK(read_crossovers(path, "1").rows.empty());
  CHECK(read_crossovers(path, "1").problem.empty());
  write_crossovers(path, "1", some_rows());
  write_crossovers(path, "1", {{"NVIDIA L4", "Q8_0", 4, 129, 5}});
  write_crossovers(path, "1", {{"NVIDIA H200", "Q6_K", 0, 2, 3}});
  const SavedCrossovers saved = read_crossovers(path, "1");
  CHECK(saved.problem.empty());
  REQUIRE(saved.rows.size() == 3);
  CHECK(same(saved.rows[0], some_rows()[0]));
  CHECK(same(saved.rows[1], {"NVIDIA L4", "Q8_0", 4, 129, 5}));
  CHECK(same(saved.rows[2], {"NVIDIA H200", "Q6_K", 0, 2, 3}));
  CHECK_FALSE(std::filesystem::exists(path + ".part"));
}

TEST_CASE("crossover file: another build's numbers are not used, and give way") {
  const std::string path = path_in_folder("builds.json");
  write_crossovers(path, "1", some_rows());
  const SavedCrossovers other = read_crossovers(path, "2");
  CHECK(other.rows.empty());
  CHECK(contains(other.problem, "measured by infer 1, and this is 2"));
  write_crossovers(path, "2", {{"NVIDIA H200", "Q4_K", 0, 3, 129}});
  CHECK(read_crossovers(path, "2").rows.size() == 1);
  CHECK(read_crossovers(path, "1").rows.empty());
}

TEST_CASE("crossover file: what is broken is told in one line and not used") {
  const json good = {{"device", "G"},     {"build", "1"},   {"format", "Q4_K"},
                     {"program_most", 2}, {"few_least", 3}, {"wide_least", 129}};
  CHECK(read_crossovers(write_file("good.json", with_row(good)), "1").rows.size() == 1);
  for (const char* text :
       {"", "{", "[]", "3", "{}", "{\"infer\": \"crossovers\"}", "{\"infer\": \"others\", \"rows\": []}",
        "{\"infer\": \"crossovers\", \"rows\": {}}", "{\"infer\": \"crossovers\", \"rows\": [7]}"}) {
    const std::string problem = problem_of(text);
    INFO(text);
    CHECK(contains(problem, "broken.json is ignored: "));
    CHECK(problem.find('\n') == std::string::npos);
  }
  CHECK(contains(problem_of(std::string(2 << 20, ' ')), "too large"));
  CHECK(contains(read_crossovers(folder(), "1").problem, "no file"));
  for (const auto& [key, value] : std::vector<std::pair<const char*, json>>{{"program_most", 5},
                                                                            {"program_most", -1},
                                                                            {"few_least", 0},
                                                                            {"few_least", 130},
                                                                            {"wide_least", 1e9},
                                                                            {"wide_least", "3"},
                                                                            {"format", "Q9_Z"},
                                                                            {"format", 4},
                                                                            {"device", nullptr},
                                                                            {"wide_least", 3.5},
                                                                            {"device", ""},
                                                                            {"build", ""}}) {
    json bad = good;
    bad[key] = value;
    INFO(bad.dump());
    const std::string problem = problem_of(with_row(bad));
    CHECK(contains(problem, "row 1: "));
    bad.erase(key);
    CHECK(contains(problem_of(with_row(bad)), "row 1: "));
  }
  // Writing replaces what is broken.
  const std::string path = write_file("replaced.json", "{");
  write_crossovers(path, "1", some_rows());
  CHECK(read_crossovers(path, "1").rows.size() == 2);
}

TEST_CASE("crossover file: numbers out of range are not written") {
  const std::string path = path_in_folder("never.json");
  CHECK_THROWS_AS(write_crossovers(path, "1", {{"G", "Q4_K", 9, 3, 129}}), infer::Error);
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("bench --autotune: refused without a GPU, and beside what it does not go with") {
  const std::string cache = path_in_folder("never_cache");
  check_refusals(
      {{{"bench", "-m", tiny_bpe(), "--autotune", "--roofline"}, 2, "--roofline: means nothing with --autotune"},
       {{"bench", "-m", tiny_bpe(), "--autotune", "--mode", "graph"}, 2, "--mode"},
       {{"bench", "-m", tiny_bpe(), "--autotune", "--act", "f16"}, 2, "--act"},
       {{"bench", "-m", tiny_bpe(), "--autotune", "-npl", "4"}, 2, "-npl"},
       {{"bench", "-m", tiny_bpe(), "--autotune", "--energy"}, 2, "--autotune"},
       {{"bench", "--autotune"}, 2, "-m: no model given"}},
      cache);
  if (!infer::list_gpus().empty()) return;
  Call call;
  call.args = {"bench", "-m", tiny_bpe(), "--autotune"};
  call.environment = {"XDG_CACHE_HOME=" + cache};
  const Outcome o = run(call);
  CHECK(o.status == 1);
  CHECK(o.out.empty());
  CHECK(contains(o.err, "--autotune: measures a GPU: cuda: "));
  CHECK_FALSE(std::filesystem::exists(cache));
}
