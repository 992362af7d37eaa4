// Tables of levels: which rows are marked, what the forms look like, and `infer bench --levels` as people call it.
#include "tools/levels.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tests/tools/well_formed.h"
#include "tools/plot.h"

using namespace infer::test;
using namespace infer::tools;
using nlohmann::json;

namespace {

LevelRow row(const std::string& level, double tok_s, double kl) {
  LevelRow r;
  r.level = level;
  for (BenchRow* part : {&r.prompt, &r.generation}) {
    part->model_size = 100 << 20, part->n_params = 100 << 20, part->stream_bytes = 100 * 1000 * 1000;
    part->bandwidth_gbps = 50, part->int8_peak_gops = 1000, part->cpu_info = "a CPU", part->n_threads = 2;
  }
  r.prompt.c.n_prompt = 512, r.prompt.seconds = {0.5, 0.5};
  r.generation.c.n_gen = 128, r.generation.seconds = {128 / tok_s, 128 / tok_s};
  r.quality.emplace();
  r.quality->add({2, 2, kl, 0.01, true}, true);
  r.quality->add({1, 1, kl, 0.02, false}, true);
  return r;
}

std::vector<LevelRow> some_rows() {
  std::vector<LevelRow> rows = {row("f16", 100, 0), row("q8_0", 190, 1e-4), row("q5_0", 180, 1e-3),
                                row("q4_0", 300, 0.02)};
  mark_best(rows);
  return rows;
}

std::string float_model(int64_t dim = 64) {
  const std::string path = path_in_folder(dim == 64 ? "levels_float.gguf" : "levels_wide.gguf");
  if (!std::filesystem::exists(path)) {
    TinyModel model;
    model.weights = infer::DType::F16;
    model.dim = dim;
    write_tiny_model(path, model);
  }
  return path;
}

std::string text_file() { return write_file("levels.txt", long_text()); }

Outcome bench(std::vector<std::string> more) {
  std::vector<std::string> args = {"bench", "-p", "8", "-n", "2", "-r", "2", "-t", "1", "-c", "64", "--chunks", "2"};
  args.insert(args.end(), more.begin(), more.end());
  return run(args);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("levels: unbeaten is what no other matches in both and betters in one") {
  using List = std::vector<bool>;
  const auto of = [](std::vector<Merit> merits) { return unbeaten(merits); };
  CHECK(of({}).empty());
  CHECK(of({{1, 1}}) == List{true});
  CHECK(of({{1, 1}, {2, 2}, {1.5, 3}}) == List{true, true, false});
  CHECK(of({{1, 1}, {2, 1}}) == List{false, true});
  CHECK(of({{1, 1}, {1, 0.5}}) == List{false, true});
  CHECK(of({{1, 1}, {1, 1}}) == List{true, true});  // neither betters the other
  CHECK(of({{3, 0.1}, {2, 0.2}, {1, 0}}) == List{true, false, true});
}

TEST_CASE("levels: marks need speed and quality in every row") {
  const auto rows = some_rows();
  CHECK(rows[0].best);
  CHECK(rows[1].best);
  CHECK_FALSE(rows[2].best);  // q8_0 is quicker and nearer
  CHECK(rows[3].best);
  auto without = some_rows();
  for (LevelRow& r : without) r.best = false;
  without[1].quality.reset();
  mark_best(without);
  for (const LevelRow& r : without) CHECK_FALSE(r.best);
}

TEST_CASE("levels: the rate, bytes and share of a row") {
  LevelRow r = row("q8_0", 200, 0);
  CHECK(r.generation_rate() == Approx(200));
  CHECK(r.prompt_rate() == Approx(1024));
  CHECK(r.bits_per_weight() == Approx(8));
  CHECK(r.gbps() == Approx(20));
  CHECK(r.share() == Approx(0.4));
  r.kv_bytes_per_token = 10000, r.generation.c.depth = 1936;  // and half of the 128
  CHECK(r.gbps() == Approx(24));
}

TEST_CASE("levels: Markdown has a column to a number, aligned, and says what it is about") {
  const LevelsAbout about{"model.gguf", "wiki.txt", 3, 512, false};
  const auto lines = lines_of(levels_text("md", some_rows(), about));
  REQUIRE(lines.size() >= 8);
  CHECK(cells_of(lines[0]) == std::vector<std::string>{"level", "size", "bits/w", "pp512 t/s", "tg128 t/s", "GB/s",
                                                       "limit", "PPL", "PPL ratio", "mean KL", "median KL", "99 % KL",
                                                       "same top", "best"});
  const auto q8 = cells_of(lines[3]);
  REQUIRE(q8.size() == 14);
  CHECK(q8[0] == "q8_0");
  CHECK(q8[1] == "100.00 MiB");
  CHECK(q8[2] == "8.00");
  CHECK(q8[3] == "1024.0 \u00b1 0.0");
  CHECK(q8[4] == "190.0 \u00b1 0.0");
  CHECK(q8[5] == "19.0");
  CHECK(q8[6] == "38 %");
  CHECK(q8[8] == "1.0000 \u00b1 0.0000");
  CHECK(q8[9] == "0.00010 \u00b1 0.00000");
  CHECK(q8[12] == "50.0 %");
  CHECK(q8[13] == "*");
  CHECK(cells_of(lines[4])[13].empty());
  const std::string all = levels_text("md", some_rows(), about);
  CHECK(contains(all, "wiki.txt, 3 windows of 512, 2 tokens scored, KL in nats from model.gguf"));
  CHECK(contains(all, "limits measured in this run: 50.0 GB/s read"));
  CHECK(contains(all, "\nbuild: "));
  CHECK(levels_text("md", {}, about).empty());
  auto deep = some_rows();
  for (LevelRow& r : deep) r.level += "_and_a_long_name", r.generation.c.depth = 16384;
  auto aligned = lines_of(std::regex_replace(levels_text("md", deep, about), std::regex("\u00b1"), "+"));
  CHECK(contains(aligned[0], "tg128 @ d16384 t/s"));
  for (size_t i = 1; i < 6; ++i) {
    REQUIRE(aligned[i].size() == aligned[0].size());
    for (size_t at = 0; at < aligned[0].size(); ++at) CHECK((aligned[i][at] == '|') == (aligned[0][at] == '|'));
  }
}

TEST_CASE("levels: of caches the table tells bytes to a token instead of sizes, and only what was measured") {
  LevelRow r = row("q8_0", 100, 0);
  r.kv_bytes_per_token = 24480;
  r.prompt.seconds.clear();
  r.quality.reset();
  const auto lines = lines_of(levels_text("md", {r}, {"", "", 0, 0, true}));
  CHECK(cells_of(lines[0]) == std::vector<std::string>{"level", "KiB/token", "tg128 t/s", "GB/s", "limit"});
  CHECK(cells_of(lines[2])[1] == "23.91");
}

TEST_CASE("levels: json, jsonl and csv have the same records") {
  const LevelsAbout about{"model.gguf", "wiki.txt", 3, 512, false};
  const json all = json::parse(levels_text("json", some_rows(), about));
  REQUIRE(all.size() == 4);
  CHECK(all[1]["level"] == "q8_0");
  CHECK(all[1]["kld_mean"].get<double>() == Approx(1e-4));
  CHECK(all[1]["ppl_ratio"].get<double>() == Approx(1));
  CHECK(all[1]["same_top"].get<double>() == Approx(0.5));
  CHECK(all[1]["best"] == true);
  CHECK(all[2]["best"] == false);
  CHECK(all[1]["tg_avg_ts"].get<double>() == Approx(190));
  CHECK(all[1]["tg_share_of_limit"].get<double>() == Approx(0.38));
  CHECK(all[1]["n_prompt"] == 512);
  for (const char* key : {"build_commit", "model_filename", "model_size", "bits_per_weight", "n_threads", "type_k",
                          "pp_avg_ts", "pp_stddev_ts", "ppl", "ppl_error", "kld_median", "kld_p99", "kld_max",
                          "quality_file", "quality_n_ctx", "read_bandwidth_gbps"})
    CHECK(all[0].contains(key));
  const auto jsonl = lines_of(levels_text("jsonl", some_rows(), about));
  REQUIRE(jsonl.size() == 4);
  CHECK(json::parse(jsonl[3]) == all[3]);
  const auto csv = lines_of(levels_text("csv", some_rows(), about));
  REQUIRE(csv.size() == 5);
  CHECK(std::count(csv[0].begin(), csv[0].end(), ',') == std::count(csv[4].begin(), csv[4].end(), ','));
  CHECK(levels_text("json", {}, about) == "[]\n");
}

TEST_CASE("plot: well-formed SVG with a point and a label to a row, legible on light and dark") {
  const std::string svg = levels_plot(some_rows(), {"model.gguf", "wiki.txt", 3, 512, false});
  CHECK(well_formed(svg));
  CHECK_FALSE(well_formed("<svg><g></svg>"));
  CHECK(svg.rfind("<svg xmlns=\"http://www.w3.org/2000/svg\"", 0) == 0);
  CHECK(count(svg, "<circle ") == 4);
  CHECK(count(svg, "class=\"point best\"") == 3);
  CHECK(count(svg, "class=\"label\"") == 4);
  CHECK(count(svg, "<polyline ") == 1);
  CHECK(contains(svg, "prefers-color-scheme:dark"));
  CHECK(contains(svg, "tokens/s"));
  CHECK(contains(svg, "nats"));
  CHECK_FALSE(contains(svg, "nan"));
  CHECK_FALSE(contains(svg, "inf"));
}

TEST_CASE("plot: labels stay inside, do not cover one another, and are escaped") {
  Plot plot;
  plot.title = "a < b & \"c\"";
  for (int i = 0; i < 6; ++i) plot.points.push_back({"level_" + std::to_string(i), 200.0 + i, 0.01, 0.001, false});
  plot.points.push_back({"<far & right>", 400, 0, 0, true});
  const std::string svg = scatter_svg(plot);
  CHECK(well_formed(svg));
  CHECK(contains(svg, "a &lt; b &amp; &quot;c&quot;"));
  CHECK(contains(svg, "&lt;far &amp; right&gt;"));
  const std::regex label("<text x=\"([0-9.-]+)\" y=\"([0-9.-]+)\" text-anchor=\"start\" class=\"label\">([^<]*)<");
  std::vector<std::array<double, 3>> boxes;  // left, baseline, width
  for (std::sregex_iterator it(svg.begin(), svg.end(), label), end; it != end; ++it)
    boxes.push_back({std::stod((*it)[1]), std::stod((*it)[2]), 7.0 * static_cast<double>((*it)[3].length())});
  REQUIRE(boxes.size() == 7);
  for (size_t i = 0; i < boxes.size(); ++i) {
    CHECK(boxes[i][0] > 0);
    for (size_t j = 0; j < i; ++j)
      CHECK((std::abs(boxes[i][1] - boxes[j][1]) >= 12 || boxes[i][0] >= boxes[j][0] + boxes[j][2] ||
             boxes[j][0] >= boxes[i][0] + boxes[i][2]));
  }
  CHECK(well_formed(scatter_svg({})));
  CHECK(well_formed(scatter_svg({"one", "x", "y", {{"p", 0, 0, 0, true}}})));
}

TEST_CASE("bench --levels: a row to a level, from one source, with quality") {
  const std::string plot = path_in_folder("levels.svg");
  const Outcome o = bench({"-m", float_model(), "--levels", "f16,Q8_0,q4_k_m,q2_k", "--quality", text_file(), "--plot",
                           plot, "-o", "json"});
  INFO(o.err);
  REQUIRE(o.status == 0);
  const json all = json::parse(o.out);
  REQUIRE(all.size() == 4);
  CHECK(all[0]["level"] == "f16");
  CHECK(all[0]["kld_mean"].get<double>() < 1e-9);
  CHECK(all[0]["ppl_ratio"].get<double>() == 1);
  CHECK(all[0]["same_top"] == 1);
  CHECK(all[0]["best"] == true);  // nothing is nearer
  CHECK(all[0]["quality_n_tokens"] == 2 * 31);
  // The tiny model's weights are integers that Q8_0 holds exactly or nearly so.
  CHECK(all[1]["kld_mean"].get<double>() < all[2]["kld_mean"].get<double>());
  CHECK(all[2]["kld_mean"].get<double>() < all[3]["kld_mean"].get<double>());
  double last = 1e30;
  for (const json& r : all) {
    CHECK(r["model_size"].get<double>() < last);
    last = r["model_size"].get<double>();
    CHECK(r["pp_avg_ts"].get<double>() > 0);
    CHECK(r["tg_avg_ts"].get<double>() > 0);
    CHECK(r["tg_gbps"].get<double>() > 0);
  }
  CHECK(contains(o.err, "q4_k_m: "));
  CHECK(contains(o.err, "tensors: rows of 64 are no multiple of 256: Q5_0 instead of Q4_K"));
  CHECK(well_formed(read_file(plot)));
  CHECK(count(read_file(plot), "<circle ") == 4);
}

TEST_CASE("bench --levels: the numbers are those of quantize and perplexity") {
  const std::string q4 = path_in_folder("levels_q4.gguf");
  REQUIRE(run({"quantize", float_model(), q4, "q4_0"}).status == 0);
  const Outcome o =
      bench({"-m", float_model(), "--levels", "q4_0", "--quality", text_file(), "-o", "json", "-n", "0", "-p", "0"});
  INFO(o.err);
  REQUIRE(o.status == 2);  // one value only: -n was given twice
  const Outcome level = run({"bench", "-p", "0", "-n", "0", "-c", "64", "--chunks", "2", "-m", float_model(),
                             "--levels", "q4_0", "--quality", text_file(), "-o", "json"});
  INFO(level.err);
  REQUIRE(level.status == 0);
  const json r = json::parse(level.out)[0];
  CHECK_FALSE(r.contains("tg_avg_ts"));
  const Outcome table = run({"bench", "-p", "0", "-n", "0", "-c", "64", "--chunks", "2", "-m", float_model(),
                             "--levels", "q4_0", "--quality", text_file()});
  CHECK(contains(table.out, "q4_0"));
  CHECK_FALSE(contains(table.out, " 0 threads"));  // nothing was timed
  const Outcome p =
      run({"perplexity", "-m", q4, "--reference", float_model(), "-f", text_file(), "-c", "64", "--chunks", "2"});
  REQUIRE(p.status == 0);
  const auto number = [&](const std::string& label) {
    REQUIRE(contains(p.out, label));
    return std::strtod(p.out.c_str() + p.out.find(label) + label.size(), nullptr);
  };
  CHECK(r["ppl"].get<double>() == Approx(number("Final estimate: PPL = ")).epsilon(1e-4));
  CHECK(r["kld_mean"].get<double>() == Approx(number("Mean    KLD:")).margin(2e-6));
  CHECK(r["kld_p99"].get<double>() == Approx(number("99.0%   KLD:")).margin(2e-6));
  CHECK(100 * r["same_top"].get<double>() == Approx(number("Same top p:")).epsilon(1e-3));
}

TEST_CASE("bench: files instead of levels, compared with the first or with a reference") {
  const std::string q8 = path_in_folder("levels_q8.gguf");
  REQUIRE(run({"quantize", float_model(), q8, "q8_0"}).status == 0);
  const Outcome o = bench({"-m", float_model() + "," + q8, "--quality", text_file()});
  INFO(o.err);
  REQUIRE(o.status == 0);
  const auto lines = lines_of(o.out);
  CHECK(cells_of(lines[2])[0] == "levels_float.gguf");
  CHECK(cells_of(lines[3])[0] == "levels_q8.gguf");
  CHECK(cells_of(lines[2])[9] == "0.00000 \u00b1 0.00000");
  CHECK(contains(o.out, "KL in nats from levels_float.gguf"));
  const Outcome other = bench({"-m", q8, "--reference", float_model(), "--quality", text_file(), "-o", "json"});
  INFO(other.err);
  REQUIRE(other.status == 0);
  CHECK(json::parse(other.out)[0]["quality_reference"] == "levels_float.gguf");
}

TEST_CASE("bench --kv-levels: caches compared with an f16 one of the same model") {
  const Outcome o = bench(
      {"-m", float_model(), "--kv-levels", "f32,f16,bf16,f16/f32", "-d", "16", "--quality", text_file(), "-o", "json"});
  INFO(o.err);
  REQUIRE(o.status == 0);
  const json all = json::parse(o.out);
  REQUIRE(all.size() == 4);
  CHECK(all[1]["kld_mean"].get<double>() < 1e-9);
  CHECK(all[2]["kld_mean"].get<double>() > all[0]["kld_mean"].get<double>());
  CHECK(all[0]["kv_bytes_per_token"].get<int64_t>() == 2 * all[1]["kv_bytes_per_token"].get<int64_t>());
  CHECK(all[3]["type_k"] == "f16");
  CHECK(all[3]["type_v"] == "f32");
  CHECK(all[0]["n_depth"] == 16);
  const Outcome usual =
      run({"bench", "-m", float_model(), "-p", "0", "-n", "0", "--kv-levels", "bf16", "--quality", text_file()});
  CHECK(usual.status == 2);  // the text has no window of 2048 tokens
  CHECK(contains(usual.err, "at least 2048"));
}

TEST_CASE("bench --shape: speed without a file") {
  const Outcome o = run({"bench", "--shape", "135m", "--levels", "q4_0,q2_k", "-p", "4", "-n", "1", "-r", "1",
                         "--no-warmup", "-o", "jsonl"});
  INFO(o.err);
  REQUIRE(o.status == 0);
  const auto lines = lines_of(o.out);
  REQUIRE(lines.size() == 2);
  CHECK(json::parse(lines[0])["model_filename"] == "random 135m");
  CHECK(json::parse(lines[0])["model_n_params"] == 134515008);
  CHECK(json::parse(lines[1])["level"] == "q2_k");
  CHECK_FALSE(json::parse(lines[1]).contains("ppl"));
}

TEST_CASE("bench refuses levels that make no sense, with one line and the status of its kind") {
  const std::string model = float_model(), text = text_file();
  const std::string q8 = path_in_folder("levels_refused.gguf");
  REQUIRE(run({"quantize", model, q8, "q8_0"}).status == 0);
  const struct {
    std::vector<std::string> args;
    int status;
    const char* says;
  } cases[] = {
      {{"--levels", "q4_0"}, 2, "no model given"},
      {{"-m", model, "--levels", "q4_0,q9"}, 2, "unknown type"},
      {{"-m", model, "--levels", "iq2_xs"}, 2, "cannot be written"},
      {{"-m", q8, "--levels", "q4_0"}, 2, "--allow-requantize"},
      {{"-m", model + "," + q8, "--levels", "q4_0"}, 2, "takes one model"},
      {{"-m", model, "--levels", "q4_0", "--kv-levels", "f16"}, 2, "not both"},
      {{"-m", model, "--kv-levels", "f16,q9_9"}, 2, "unknown type of KV cache"},
      {{"-m", model, "--levels", "q4_0", "--plot", path_in_folder("x.svg")}, 2, "--quality"},
      {{"-m", model, "--levels", "q4_0", "--quality", text, "--plot", path_in_folder("none/x.svg")}, 1, "No such file"},
      {{"-m", model, "--levels", "q4_0", "--quality", path_in_folder("none.txt")}, 1, "No such file"},
      {{"-m", model, "--levels", "q4_0", "--quality", write_file("short.txt", "hello")}, 2, "at least 64"},
      {{"-m", path_in_folder("none.gguf"), "--levels", "q4_0"}, 1, "No such file"},
      {{"-m", text, "--levels", "q4_0"}, 3, "levels.txt"},
      {{"-m", float_model(256), "--levels", "tq1_0"}, 3, "tq1_0: "},
      {{"-m", model, "--levels", "q4_0", "-o", "xml"}, 2, "unknown form"},
      {{"-m", model, "--reference", tiny_spm(), "--quality", text}, 2, "another vocabulary"},
      {{"-m", model, "--shape", "1b"}, 2, "--shape"},
      {{"--shape", "9b"}, 2, "8b (Llama-3.1-8B)"},
      {{"--shape", "1b", "--quality", text}, 2, "random weights have none"},
  };
  for (const auto& c : cases) {
    const Outcome o = bench(c.args);
    INFO(o.err);
    CHECK(o.status == c.status);
    CHECK(contains(o.err, c.says));
    CHECK(count(o.err, "error:") == 1);
    CHECK(o.out.empty());
  }
}

TEST_CASE("bench: a level that does not fit is left out, and the status says so") {
  if (kSanitized) return;  // without a limit on memory nothing is too large
  Call call;
  call.args = {"bench", "--shape", "8b", "--levels", "f16", "-p", "1", "-n", "1", "-r", "1"};
  call.memory_bytes = size_t{600} << 20;
  const Outcome o = run(call);
  INFO(o.err);
  CHECK(o.status == 4);
  CHECK(contains(o.err, "f16: left out: "));
  CHECK(o.out.empty());
}
