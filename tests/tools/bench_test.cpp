// `infer bench` in the forms that people's scripts read, and `infer perplexity`.
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer::test;
using nlohmann::json;

namespace {

Outcome bench(std::vector<std::string> more) {
  std::vector<std::string> args = {"bench", "-m", tiny_bpe(), "-r", "2", "-t", "1"};
  args.insert(args.end(), more.begin(), more.end());
  Outcome o = run(args);
  INFO(o.err);
  REQUIRE(o.status == 0);
  return o;
}

// The column `test` of all rows.
std::vector<std::string> tests_of(const std::vector<std::string>& more) {
  std::vector<std::string> out;
  for (const std::string& line : lines_of(bench(more).out)) {
    const auto row = cells_of(line);
    if (line[0] == '|' && row[0] != "model" && row[0][0] != '-') out.push_back(row[row.size() - 2]);
  }
  return out;
}

const std::vector<std::string> kKeys = {
    "build_commit", "build_number", "cpu_info",       "gpu_info",   "backends",  "model_filename",
    "model_type",   "model_size",   "model_n_params", "n_batch",    "n_ubatch",  "n_threads",
    "type_k",       "type_v",       "n_gpu_layers",   "flash_attn", "mode",      "act",
    "fusion",       "n_prompt",     "n_gen",          "n_depth",    "test_time", "avg_ns",
    "stddev_ns",    "avg_ts",       "stddev_ts",      "samples_ns", "samples_ts"};

}  // namespace

TEST_CASE("the table has llama-bench's columns, aligned, and ends with the build") {
  const auto lines = lines_of(bench({"-p", "16", "-n", "4"}).out);
  REQUIRE(lines.size() == 6);
  CHECK(cells_of(lines[0]) == std::vector<std::string>{"model", "size", "params", "backend", "threads", "test", "t/s"});
  for (const std::string& rule : cells_of(lines[1])) CHECK(rule.find_first_not_of("-:") == std::string::npos);
  const auto pp = cells_of(lines[2]), tg = cells_of(lines[3]);
  REQUIRE(pp.size() == 7);
  CHECK(contains(pp[0], "llama"));
  CHECK(contains(pp[1], "MiB"));
  CHECK(contains(pp[2], " M"));
  CHECK(pp[3] == "CPU");
  CHECK(pp[4] == "1");
  CHECK(pp[5] == "pp16");
  CHECK(tg[5] == "tg4");
  CHECK(contains(pp[6], " \u00b1 "));
  CHECK(std::atof(pp[6].c_str()) > 0);
  CHECK(lines[1].size() == lines[0].size());
  CHECK(lines[2].find("pp16 |") == lines[0].find("test |"));
  CHECK(lines[3].find("tg4 |") == lines[0].find("est |"));
  CHECK(lines[4].empty());
  CHECK(lines[5].rfind("build: ", 0) == 0);
}

TEST_CASE("parameters that are not at their defaults get a column") {
  const auto lines = lines_of(bench({"-p", "8", "-n", "0", "-ub", "4,512", "-ctk", "f32"}).out);
  REQUIRE(lines.size() == 6);
  CHECK(cells_of(lines[0]) ==
        std::vector<std::string>{"model", "size", "params", "backend", "threads", "n_ubatch", "type_k", "test", "t/s"});
  CHECK(cells_of(lines[2])[5] == "4");
  CHECK(cells_of(lines[3])[5] == "512");
  CHECK(cells_of(lines[2])[6] == "f32");
}

TEST_CASE("switches that turn a technique off get a column, and are in the records") {
  const auto lines = lines_of(bench({"-p", "8", "-n", "0", "--no-graphs", "--no-fusion"}).out);
  REQUIRE(lines.size() == 5);
  CHECK(cells_of(lines[0]) ==
        std::vector<std::string>{"model", "size", "params", "backend", "threads", "mode", "fusion", "test", "t/s"});
  CHECK(cells_of(lines[2])[5] == "eager");
  CHECK(cells_of(lines[2])[6] == "off");
  const json off = json::parse(bench({"-p", "8", "-n", "0", "--no-fusion", "-o", "json"}).out);
  CHECK(off[0]["fusion"] == false);
  CHECK(off[0]["mode"] == "auto");
  CHECK(off[0]["act"] == "auto");
}

TEST_CASE("lists, repetitions and ranges of lengths, -pg and depths") {
  using List = std::vector<std::string>;
  CHECK(tests_of({"-p", "4,8", "-p", "2", "-n", "0"}) == List{"pp4", "pp8", "pp2"});
  CHECK(tests_of({"-p", "4-12+4", "-n", "0"}) == List{"pp4", "pp8", "pp12"});
  CHECK(tests_of({"-p", "0", "-n", "2-8*2"}) == List{"tg2", "tg4", "tg8"});
  CHECK(tests_of({"-p", "0", "-n", "1-3"}) == List{"tg1", "tg2", "tg3"});
  CHECK(tests_of({"-p", "0", "-n", "0", "-pg", "8,3"}) == List{"pp8+tg3"});
  CHECK(tests_of({"-p", "5", "-n", "2", "-d", "0,40"}) == List{"pp5", "tg2", "pp5 @ d40", "tg2 @ d40"});
  for (const char* bad : {"8-4", "x", "1-", "0-8*2", "1-8*1", "1-8+0", "4,,5", "-1"}) {
    const Outcome o = run({"bench", "-m", tiny_bpe(), "-p", bad});
    INFO(bad << ": " << o.err);
    CHECK(o.status == 2);
    CHECK(o.out.empty());
  }
  CHECK(run({"bench", "-m", tiny_bpe(), "-pg", "8"}).status == 2);
}

TEST_CASE("json is an array of records with the keys that people parse") {
  const json all = json::parse(bench({"-p", "8", "-n", "2", "-o", "json"}).out);
  REQUIRE(all.size() == 2);
  for (const json& r : all) {
    for (const std::string& key : kKeys) {
      INFO(key);
      CHECK(r.contains(key));
    }
    CHECK(r.size() == kKeys.size());
    CHECK(r["samples_ns"].size() == 2);
    CHECK(r["samples_ts"].size() == 2);
    CHECK(r["model_filename"] == tiny_bpe());
    CHECK(r["n_threads"] == 1);
    CHECK(r["test_time"].get<std::string>().size() == 20);
    const double tokens = r["n_prompt"].get<double>() + r["n_gen"].get<double>();
    CHECK(r["samples_ts"][0].get<double>() == Approx(tokens * 1e9 / r["samples_ns"][0].get<double>()).epsilon(0.01));
    CHECK(r["avg_ns"].get<double>() ==
          Approx((r["samples_ns"][0].get<double>() + r["samples_ns"][1].get<double>()) / 2).epsilon(0.01));
  }
  CHECK(all[0]["n_prompt"] == 8);
  CHECK(all[0]["n_gen"] == 0);
  CHECK(all[1]["n_prompt"] == 0);
  CHECK(all[1]["n_gen"] == 2);
}

TEST_CASE("jsonl is one record a line, csv a head and one line a record") {
  const auto lines = lines_of(bench({"-p", "8", "-n", "2", "-o", "jsonl"}).out);
  REQUIRE(lines.size() == 2);
  CHECK(json::parse(lines[1])["n_gen"] == 2);
  const auto csv = lines_of(bench({"-p", "8", "-n", "2", "-o", "csv"}).out);
  REQUIRE(csv.size() == 3);
  std::string head;
  for (size_t i = 0; i + 2 < kKeys.size(); ++i) head += (i ? "," : "") + kKeys[i];
  CHECK(csv[0] == head);
  CHECK(csv[1].front() == '"');
  CHECK(csv[1].back() == '"');
  CHECK(contains(csv[1], "\"" + tiny_bpe() + "\""));
}

TEST_CASE("several models, the share of the limit, and encoding speed") {
  const auto rows = lines_of(bench({"-m", tiny_spm(), "-p", "0", "-n", "2"}).out);
  CHECK(rows.size() == 6);
  const std::string with_limit = bench({"-p", "8", "-n", "2", "--bw"}).out;
  CHECK(contains(with_limit, "of the limit"));
  CHECK(contains(with_limit, "GB/s"));
  CHECK(contains(with_limit, "limits measured in this run"));
  const Outcome o = run(
      {"bench", "-m", tiny_bpe(), "--tokenizer", "-f", write_file("encode.txt", std::string(5000, 'x')), "-r", "2"});
  CHECK(o.status == 0);
  CHECK(contains(o.out, "5000 bytes"));
  CHECK(contains(o.out, "MB/s"));
}

TEST_CASE("rows appear as they are measured, and Ctrl-C keeps them") {
  Call call;
  call.args = {"bench", "-m", tiny_long(), "-p", "8", "-n", "100000", "-r", "1", "-t", "1", "--no-warmup"};
  call.interrupt_at = 300;  // head and first row
  const Outcome o = run(call);
  INFO(o.out << o.err);
  CHECK(o.status == 130);
  CHECK(contains(o.out, "pp8"));
  CHECK_FALSE(contains(o.out, "tg100000"));
  CHECK(contains(o.out, "build: "));
}

namespace {

double number_after(const std::string& text, const std::string& label) {
  const size_t at = text.find(label);
  return at == std::string::npos ? NAN : std::strtod(text.c_str() + at + label.size(), nullptr);
}

}  // namespace

TEST_CASE("perplexity ends with the final estimate, the same on both devices") {
  const std::string file = write_file("text.txt", long_text());
  const Outcome o = run({"perplexity", "-m", tiny_bpe(), "-f", file, "-c", "64", "--chunks", "3"});
  INFO(o.out << o.err);
  REQUIRE(o.status == 0);
  const auto lines = lines_of(o.out);
  REQUIRE(lines.size() == 2);
  CHECK(contains(lines[0], "[1]"));
  CHECK(contains(lines[0], "[3]"));
  CHECK(lines[1].rfind("Final estimate: PPL = ", 0) == 0);
  CHECK(contains(lines[1], " +/- "));
  const double ppl = number_after(o.out, "PPL = ");
  CHECK(ppl > 1);
  const Outcome ref = run({"eval", "-m", tiny_bpe(), "-f", file, "-c", "64", "--chunks", "3", "--device", "ref"});
  CHECK(number_after(ref.out, "PPL = ") == Approx(ppl).epsilon(1e-3));
}

TEST_CASE("a model diverges by nothing from itself, and by something from another") {
  const std::string file = write_file("text.txt", long_text());
  const std::vector<std::string> args = {"perplexity", "-m", tiny_bpe(), "-f", file,
                                         "-c",         "64", "--chunks", "2",  "--reference"};
  auto with = args;
  with.push_back(tiny_bpe());
  const Outcome same = run(with);
  INFO(same.out << same.err);
  REQUIRE(same.status == 0);
  CHECK(std::abs(number_after(same.out, "Mean    KLD:")) <= 1e-6);
  CHECK(number_after(same.out, "Maximum KLD:") <= 1e-6);
  CHECK(number_after(same.out, "Same top p:") == 100);
  CHECK(number_after(same.out, "Mean PPL(Q)/PPL(base)         :") == 1);
  CHECK(lines_of(same.out).back().rfind("Final estimate: PPL = ", 0) == 0);
  TinyModel other;
  other.seed = 2;
  write_tiny_model(path_in_folder("other.gguf"), other);
  with.back() = path_in_folder("other.gguf");
  CHECK(number_after(run(with).out, "Mean    KLD:") > 1e-3);
  with.back() = tiny_spm();
  const Outcome vocabulary = run(with);
  CHECK(vocabulary.status == 2);
  CHECK(contains(vocabulary.err, "another vocabulary"));
}

TEST_CASE("a text shorter than a window is refused") {
  const Outcome o = run({"perplexity", "-m", tiny_bpe(), "-f", write_file("short.txt", "hello"), "-c", "64"});
  CHECK(o.status == 2);
  CHECK(contains(o.err, "at least 64"));
}
