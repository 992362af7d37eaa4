// `infer bench` for many sequences as people call it: columns and forms, what is refused, what does not fit.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;
using nlohmann::json;

namespace {

Outcome bench(std::vector<std::string> more) {
  std::vector<std::string> args = {"bench", "-m", tiny_bpe(), "-t", "1"};
  args.insert(args.end(), more.begin(), more.end());
  return run(args);
}

std::string good(std::vector<std::string> more) {
  const Outcome o = bench(std::move(more));
  INFO(o.err);
  REQUIRE(o.status == 0);
  return o.out;
}

std::vector<std::vector<std::string>> rows_of(const std::string& out) {
  std::vector<std::vector<std::string>> rows;
  for (const std::string& line : lines_of(out))
    if (!line.empty() && line[0] == '|') rows.push_back(cells_of(line));
  return rows;
}

}  // namespace

TEST_CASE("batches: llama-batched-bench's flags and columns") {
  const auto rows = rows_of(good({"-npp", "16,40", "-ntg", "4", "-npl", "1-4*2", "-r", "2"}));
  REQUIRE(rows.size() == 2 + 6);
  CHECK(rows[0] ==
        std::vector<std::string>{"PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s"});
  CHECK(std::vector<std::string>(rows[4].begin(), rows[4].begin() + 4) ==
        std::vector<std::string>{"16", "4", "4", "80"});
  CHECK(std::vector<std::string>(rows[7].begin(), rows[7].begin() + 4) ==
        std::vector<std::string>{"40", "4", "4", "176"});
  for (size_t i = 2; i < rows.size(); ++i)
    for (size_t column : {5, 7, 9}) CHECK(std::atof(rows[i][column].c_str()) > 0);
  const auto shared = rows_of(good({"-npp", "40", "-ntg", "4", "-npl", "3", "-pps", "-r", "1", "--bw"}));
  CHECK(shared[2][3] == "52");
  CHECK(shared[0].back() == "TG of the limit");
  CHECK(contains(shared[2].back(), "GB/s ("));
}

TEST_CASE("batches: json, jsonl and csv have the same records") {
  const std::vector<std::string> args = {"-npp", "16", "-ntg", "4", "-npl", "1,3", "-r", "2", "--deterministic", "-o"};
  auto with = [&](const char* form) {
    auto all = args;
    all.push_back(form);
    return good(all);
  };
  const json all = json::parse(with("json"));
  REQUIRE(all.size() == 2);
  CHECK(all[1]["pp"] == 16);
  CHECK(all[1]["tg"] == 4);
  CHECK(all[1]["pl"] == 3);
  CHECK(all[1]["n_kv"] == 60);
  CHECK(all[1]["is_pp_shared"] == false);
  CHECK(all[1]["samples_t_tg"].size() == 2);
  CHECK(all[1]["speed_tg"].get<double>() == Approx(12 / all[1]["t_tg"].get<double>()));
  CHECK(all[1]["t"].get<double>() == Approx(all[1]["t_pp"].get<double>() + all[1]["t_tg"].get<double>()));
  CHECK(all[1]["n_threads"] == 1);
  CHECK(all[1]["model_filename"] == tiny_bpe());
  const auto lines = lines_of(with("jsonl"));
  REQUIRE(lines.size() == 2);
  CHECK(json::parse(lines[1])["pl"] == 3);
  const auto csv = lines_of(with("csv"));
  REQUIRE(csv.size() == 3);
  CHECK(contains(csv[0], ",pp,tg,pl,n_kv,t_pp,speed_pp,t_tg,speed_tg,t,speed"));
}

TEST_CASE("batches: what does not fit is told and left out, and the status says so") {
  if (kSanitized) return;  // limits of addresses mean nothing there
  Call call;
  call.args = {"bench", "-m",       tiny_bpe(), "-t", "1",    "-npp", "1000", "-ntg", "2",
               "-npl",  "1,1000,2", "-r",       "1",  "-ctk", "f32",  "-ctv", "f32",  "--no-warmup"};
  call.memory_bytes = size_t{300} << 20;
  const Outcome o = run(call);
  INFO(o.out << o.err);
  CHECK(o.status == 4);
  const auto rows = rows_of(o.out);
  REQUIRE(rows.size() == 4);
  CHECK(rows[2][2] == "1");
  CHECK(rows[3][2] == "2");
  CHECK(contains(o.err, "B 1000: left out: "));
}

TEST_CASE("load: a row to an arrival, with quantiles of what requests felt") {
  const std::vector<std::string> common = {"-npp", "12", "-ntg", "4", "--duration", "500ms", "-np", "8"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return good(more);
  };
  const auto rows = rows_of(with({"--arrival", "poisson:40/s", "--arrival", "all:20"}));
  REQUIRE(rows.size() == 4);
  CHECK(rows[0] == std::vector<std::string>{"arrival", "PP", "TG", "done", "TTFT p50 / p90 / p99 ms",
                                            "ITL p50 / p90 / p99 ms", "E2E p50 / p90 / p99 ms", "in t/s", "out t/s",
                                            "running", "preempted"});
  CHECK(rows[2][0] == "poisson:40/s");
  CHECK(rows[3][0] == "all:20");
  CHECK(rows[3][3] == "20");
  CHECK(rows[3][9] == "8");
  const json all = json::parse(with({"--arrival", "fixed:20/s", "-o", "json"}));
  REQUIRE(all.size() == 1);
  CHECK(all[0]["n_arrived"] == 10);
  CHECK(all[0]["n_finished"] == 10);
  CHECK(all[0]["n_itl"] == 30);
  CHECK(all[0]["seconds"].get<double>() == Approx(0.5));
  CHECK(all[0]["tokens_out_per_s"].get<double>() > 0);
  CHECK(all[0]["ttft_p50_ms"].get<double>() <= all[0]["ttft_p99_ms"].get<double>());
  CHECK(all[0]["e2e_p50_ms"].get<double>() >= all[0]["ttft_p50_ms"].get<double>());
}

TEST_CASE("load: Ctrl-C keeps what was measured until then") {
  Call call;
  call.args = {"bench",     "-m",    tiny_bpe(),  "-t",           "1",          "-npp", "8",   "-ntg", "4",
               "--arrival", "all:3", "--arrival", "fixed:1000/s", "--duration", "10m",  "-np", "2"};
  call.interrupt_at = 400;  // head and first row
  const Outcome o = run(call);
  INFO(o.out << o.err);
  CHECK(o.status == 130);
  const auto rows = rows_of(o.out);
  REQUIRE(rows.size() >= 3);
  CHECK(rows[2][0] == "all:3");
  CHECK(contains(o.out, "build: "));
}

TEST_CASE("load: prompts of a file, a line each, in turn") {
  const std::string file = write_file("prompts.txt", "hello world\n\nthe quick brown fox\nx");
  const json all = json::parse(
      good({"--prompts", file, "-ntg", "2", "--arrival", "all:7", "-np", "2", "-o", "json", "--duration", "20s"}));
  CHECK(all[0]["n_finished"] == 7);
  CHECK(all[0]["n_prompt"].get<double>() > 1);
  CHECK(all[0]["max_running"] == 2);
}

TEST_CASE("sla: a row to a probe, and the answer in a line") {
  const std::vector<std::string> common = {"-npp", "8", "-ntg", "4", "--duration", "400ms", "-np", "4"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return bench(more);
  };
  const Outcome easy = with({"--sla", "itl.p99<1h,ttft.p50<1h"});
  INFO(easy.out << easy.err);
  CHECK(easy.status == 0);
  auto rows = rows_of(easy.out);
  REQUIRE(rows.size() == 5);
  CHECK(rows[0][0] == "at once");
  CHECK(rows[0].back() == "kept");
  CHECK(rows[4][0] == "4");
  CHECK(rows[4].back() == "yes");
  CHECK(contains(easy.out, "itl.p99<3600 s, ttft.p50<3600 s: 4 at once, "));
  CHECK(contains(easy.out, "bound by the 4 that were tried at most (-np)"));
  const Outcome hard = with({"--sla", "itl.p50<1us"});
  INFO(hard.out << hard.err);
  CHECK(hard.status == 5);
  rows = rows_of(hard.out);
  REQUIRE(rows.size() == 3);
  CHECK(rows[2].back() == "no");
  CHECK(contains(hard.out, "not even one at a time; bound by itl.p50 "));
  const Outcome records = with({"--sla", "itl.p99<1h", "-o", "jsonl"});
  for (const std::string& line : lines_of(records.out)) CHECK(json::parse(line)["kept"] == true);
  CHECK(contains(records.err, "4 at once, "));
}

TEST_CASE("many sequences: what makes no sense is refused by its flag") {
  const std::string m = tiny_bpe();
  check_refusals(
      {{{"bench", "-m", m, "-npp", "8"}, 2, "-npl"},
       {{"bench", "-m", m, "-npl", "0"}, 2, "-npl"},
       {{"bench", "-m", m, "-npl", "2000"}, 2, "-npl"},
       {{"bench", "-m", m, "-npl", "x"}, 2, "-npl"},
       {{"bench", "-m", m, "-npl", "1", "-npp", "0", "-ntg", "0"}, 2, "-ntg"},
       {{"bench", "-m", m, "-npl", "1", "-p", "8"}, 2, "-p"},
       {{"bench", "-m", m, "-npl", "1", "--levels", "all"}, 2, "--levels"},
       {{"bench", "-m", m, "-npl", "1", "--arrival", "all:1"}, 2, "-npl"},
       {{"bench", "-m", m, "-npl", "1", "--duration", "1s"}, 2, "--duration"},
       {{"bench", "-m", m, "-npl", "1", "-ctk", "f16,f32"}, 2, "-ctk"},
       {{"bench", "-npl", "1"}, 2, "-m"},
       {{"bench", "-m", m, "--arrival", "4/s"}, 2, "--arrival"},
       {{"bench", "-m", m, "--arrival", "poisson:4"}, 2, "--arrival"},
       {{"bench", "-m", m, "--arrival", "all:1", "--duration", "60"}, 2, "--duration"},
       {{"bench", "-m", m, "--arrival", "all:1", "-pps"}, 2, "-pps"},
       {{"bench", "-m", m, "--arrival", "all:1", "--sla", "itl.p99<1s"}, 2, "--sla"},
       {{"bench", "-m", m, "--arrival", "all:1", "-npp", "0"}, 2, "-npp"},
       {{"bench", "-m", m, "--arrival", "all:1", "--prompts", "/nowhere/x"}, 1, "/nowhere/x"},
       {{"bench", "-m", m, "--arrival", "all:1", "--prompts", write_file("empty.txt", "\n\n")}, 2, "no prompts"},
       {{"bench", "-m", m, "--sla", "itl.p99"}, 2, "--sla"},
       {{"bench", "-m", m, "--sla", "itl.p99<5ms", "-npp", "1,2"}, 2, "-npp"},
       {{"bench", "-m", m, "--sla", "itl.p99<5ms", "-np", "0"}, 2, "--parallel"},
       {{"bench", "-m", m, "-npl", "1", "-o", "xml"}, 2, "-o"}},
      path_in_folder("never"));
}

TEST_CASE("deterministic: accepted where it is always so") {
  const Outcome plain = run({"run", "-m", tiny_bpe(), "-no-cnv", "-p", "hello", "-n", "8", "--temp", "0", "-t", "2"});
  const Outcome same =
      run({"run", "-m", tiny_bpe(), "-no-cnv", "-p", "hello", "-n", "8", "--temp", "0", "-t", "2", "--deterministic"});
  CHECK(plain.status == 0);
  CHECK(same.status == 0);
  CHECK(same.out == plain.out);
  CHECK(contains(run({"run", "--help"}).out, "--deterministic"));
  CHECK(contains(run({"bench", "--help"}).out, "--deterministic"));
}
