// The tables that explain a speed: what their rows add up to, which limit is said to bind, how the ladder counts its
// gains, what the drawings hold, and `infer bench --roofline`, `--ladder` and `--host-overhead` as people call them.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tests/tools/well_formed.h"
#include "tools/charts.h"
#include "tools/ladder.h"
#include "tools/roofline.h"

using namespace infer::test;
using namespace infer::tools;
using nlohmann::json;

namespace {

RooflinePhase some_phase(double wall = 0.02, double whole = 0.019) {
  RooflinePhase phase;
  phase.about.c.n_gen = 10, phase.about.model_type = "llama 1.00B F16";
  phase.about.bandwidth_gbps = 100, phase.about.int8_peak_gops = 1000;
  infer::StepProfile& p = phase.profile;
  p.n_steps = p.n_tokens = 10;
  p.stages = {{"attn_in", 20, 20, 0.004, 4e8, 1e6, 8e8, 2.1e7}, {"ffn", 20, 40, 0.012, 1.2e9, 2e6, 2.4e9, 6.1e7}};
  p.step_seconds = 0.018, p.whole_seconds = whole, p.wall_seconds = wall;
  p.n_whole_launches = 60, p.launch_seconds = 1e-5, p.cache_bytes = 30000000;
  return phase;
}

LadderRow ladder_row(const std::string& name, double tok_s, bool without = false) {
  LadderRow row;
  row.step.name = name, row.step.without = without;
  if (without) row.step.unfused = {"ffn"};
  for (BenchRow* part : {&row.prompt, &row.generation}) {
    part->model_size = 1000, part->n_params = 100, part->stream_bytes = 1000, part->matrix_params = 100;
    part->bandwidth_gbps = 1, part->int8_peak_gops = 1;
  }
  row.prompt.c.n_prompt = 10, row.prompt.seconds = {1 / tok_s};
  row.generation.c.n_gen = 10, row.generation.seconds = {10 / tok_s};
  return row;
}

std::string float_model() {
  const std::string path = path_in_folder("explain_float.gguf");
  if (!std::filesystem::exists(path)) {
    TinyModel model;
    model.weights = infer::DType::BF16;
    write_tiny_model(path, model);
  }
  return path;
}

Outcome bench(std::vector<std::string> more) {
  std::vector<std::string> args = {"bench", "-r", "2", "-t", "1", "--device", "cpu"};
  if (std::find(more.begin(), more.end(), "-n") == more.end()) args.insert(args.end(), {"-p", "8", "-n", "3"});
  args.insert(args.end(), more.begin(), more.end());
  return run(args);
}

json json_of(std::vector<std::string> more) {
  more.insert(more.end(), {"-o", "json"});
  const Outcome o = bench(more);
  INFO(o.err);
  REQUIRE(o.status == 0);
  return json::parse(o.out);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("roofline: the rows add up to the step, per token, the rest by name") {
  const auto rows = roofline_rows(some_phase());
  REQUIRE(rows.size() == 5);
  CHECK(rows[0].us == Approx(400));
  CHECK(rows[0].gbps() == Approx(401e6 / 0.004 / 1e9));
  CHECK(rows[0].gops() == Approx(200));
  CHECK(rows[0].fits_cache);
  CHECK_FALSE(rows[1].fits_cache);
  CHECK(rows[1].launches == Approx(4));
  CHECK(rows[2].name == "between stages");
  CHECK(rows[2].us == Approx(200));
  CHECK(rows[3].name == "sum");
  CHECK(rows[0].us + rows[1].us + rows[2].us == Approx(rows[3].us));
  CHECK(rows[0].share + rows[1].share + rows[2].share == Approx(rows[3].share));
  CHECK(rows[3].share == Approx(18.0 / 19));
  CHECK(rows[4].name == "step");
  CHECK(rows[4].us == Approx(1900));
  CHECK(rows[4].share == 1);
  CHECK(rows[4].launches == Approx(6));
  CHECK(rows[4].bytes() == Approx(1.603e8));
  CHECK(rows[4].call_bytes == Approx(1.603e8));
  CHECK(rows[4].flops == Approx(3.2e8));
}

TEST_CASE("roofline: how far the rows are from the step, and how they were timed") {
  RooflinePhase phase = some_phase();
  CHECK(sum_error(phase.profile) == Approx(-1.0 / 19));
  CHECK(contains(roofline_text("md", {phase}), "add up to 1800.00 us/token, -5.3 % of a step as usual: 1900.00 us"));
  CHECK(contains(roofline_text("md", {phase}), "each timed by itself"));
  phase.profile.n_prefixes = 20, phase.profile.n_prefix_ops = 130;
  CHECK(contains(roofline_text("md", {phase}), "by 20 prefixes of steps of 130 ops"));
  phase.profile.n_prefixes = 131;
  CHECK(contains(roofline_text("md", {phase}), "by all 131 prefixes of a step"));
  const json step = json::parse(roofline_text("json", {phase})).back();
  CHECK(step["sum_us_per_token"] == Approx(1800));
  CHECK(step["sum_error"] == Approx(-1.0 / 19));
  CHECK(step["prefixes"] == 131);
}

TEST_CASE("roofline: what explains most of the time is what binds") {
  const RooflineVerdict v = verdict(some_phase());
  CHECK(v.memory == Approx(1.603e9 / 100e9 / 0.02));
  CHECK(v.compute == Approx(3.2e9 / 1e12 / 0.02));
  CHECK(v.launch == Approx(60 * 1e-5 / 0.02));
  CHECK(v.host == Approx(0.05));
  CHECK(std::string(v.bound()) == "memory");
  CHECK(std::string(verdict(some_phase(0.1, 0.02)).bound()) == "host");
  RooflinePhase phase = some_phase();
  phase.about.int8_peak_gops = 150;
  CHECK(std::string(verdict(phase).bound()) == "compute");
  phase = some_phase();
  phase.profile.launch_seconds = 3e-4;
  CHECK(std::string(verdict(phase).bound()) == "launch");
}

TEST_CASE("roofline: the table says what fits into the cache only where it does") {
  const std::string text = roofline_text("md", {some_phase()});
  CHECK(count(text, "fits in cache") == 1);
  CHECK(contains(text, "it does not fit"));
  CHECK(contains(text, "bound by: memory;"));
  RooflinePhase slow = some_phase(0.2, 0.19);
  CHECK(contains(roofline_text("md", {slow}), "explains less than half"));
  CHECK_FALSE(contains(text, "above 100 %"));
  CHECK(contains(roofline_text("md", {some_phase(0.01, 0.009)}), "above 100 %"));
  CHECK(roofline_text("json", {}) == "[]\n");
}

TEST_CASE("roofline: kernels have columns and a table of their own where there are some") {
  CHECK_FALSE(contains(roofline_text("md", {some_phase()}), "occupancy"));
  RooflinePhase phase = some_phase();
  phase.about.gpu_info = "NVIDIA H200", phase.about.tensor_peak_tflops = 1;
  phase.profile.stages[1].kernels = {{"norm_kernel", 1, 10, 256, 32, 0, 1024, 8, 1.0},
                                     {"matmul_kernel<Q4_K>", 2, 132, 384, 168, 16, 204800, 1, 0.1875}};
  phase.profile.step_kernels = {{"decode_kernel<1>", 1, 132, 544, 112, 0, 225280, 1, 0.265625}};
  const std::string text = roofline_text("md", {phase});
  std::vector<std::vector<std::string>> rows;
  for (const std::string& line : lines_of(text))
    if (line.starts_with("| ") && !line.starts_with("| --")) rows.push_back(cells_of(line));
  CHECK(rows[0].back() == "occupancy");
  CHECK(std::vector<std::string>(rows[1].end() - 3, rows[1].end()) == std::vector<std::string>{"", "", ""});
  CHECK(std::vector<std::string>(rows[2].end() - 3, rows[2].end()) == std::vector<std::string>{"168", "200.0", "19 %"});
  CHECK(std::vector<std::string>(rows[5].end() - 3, rows[5].end()) == std::vector<std::string>{"112", "220.0", "27 %"});
  CHECK(rows[8] ==
        std::vector<std::string>{"ffn", "matmul_kernel<Q4_K>", "2", "132", "384", "168", "16", "200.0", "1", "19 %"});
  CHECK(rows[9][0] == "step");
  const json records = json::parse(roofline_text("json", {phase}));
  CHECK(records[0]["registers"].is_null());
  CHECK(records[1]["registers"] == 168);
  CHECK(records[1]["local_bytes"] == 16);
  CHECK(records[1]["occupancy"] == 0.1875);
  CHECK(records[1]["kernels"].size() == 2);
  CHECK(records[1]["kernels"][0]["shared_bytes"] == 1024);
  CHECK_FALSE(json::parse(roofline_text("json", {some_phase()}))[0].contains("registers"));
}

TEST_CASE("roofline: lines of csv have a field for every column") {
  const auto lines = lines_of(roofline_text("csv", {some_phase()}));
  REQUIRE(lines.size() == 6);
  const auto n_fields = [](const std::string& line) { return std::count(line.begin(), line.end(), ','); };
  for (const std::string& line : lines) CHECK(n_fields(line) == n_fields(lines[0]));
}

TEST_CASE("ladder: a step gains over the step before, and a fusion over the step without it") {
  const std::vector<LadderRow> rows = {ladder_row("a", 10), ladder_row("b", 20), ladder_row("  without ffn", 16, true),
                                       ladder_row("  without logits", 19, true), ladder_row("c", 30)};
  const auto gain = [&](size_t i) { return ladder_gain(rows, i, &LadderRow::generation_rate); };
  CHECK(gain(0) == 0);
  CHECK(gain(1) == Approx(2));
  CHECK(gain(2) == Approx(20.0 / 16));
  CHECK(gain(3) == Approx(20.0 / 19));
  CHECK(gain(4) == Approx(1.5));
  const std::string text = ladder_text("md", rows, {{"graphs", "a CPU launches nothing"}});
  CHECK(contains(text, "left out: graphs: a CPU launches nothing"));
  CHECK(contains(text, "prompt 3.0x, generation 3.0x"));
}

TEST_CASE("ladder: every device has its steps, and names those it lacks") {
  const LadderPlan cpu = cpu_ladder("BF16", "Q4_0", {"scalar", "avx2"}, 4),
                   one = cpu_ladder("F16", "Q4_0", {"scalar"}, 1);
  CHECK(cpu.steps.front().quant == "F32");
  CHECK_FALSE(cpu.steps.front().fusion);
  CHECK(cpu.steps.back().quant == "Q4_0");
  CHECK(cpu.steps.back().n_threads == 4);
  CHECK(one.steps.size() == cpu.steps.size() - 2);
  CHECK(one.omissions.size() == cpu.omissions.size() + 1);
  std::set<std::string> unfused;
  for (const LadderStep& step : cpu.steps)
    if (step.without) unfused.insert(step.unfused.front());
  CHECK(unfused == std::set<std::string>{"attn_in", "attn_out", "ffn", "logits"});
  const LadderPlan gpu = gpu_ladder("BF16", "Q4_K_M");
  std::set<std::string> modes;
  for (const LadderStep& step : gpu.steps) modes.insert(step.mode);
  CHECK(modes == std::set<std::string>{"eager", "graph", "persistent", "auto"});
  CHECK(contains(gpu.omissions.front().name, "flash attention"));
}

TEST_CASE("charts: well-formed, for dark and light, whatever the numbers") {
  BarChart bars{"a < b", "x", {"generation", "prompt"}, {{"one", {1, 2000}}, {"none", {0, 0}}}};
  RooflineChart roof{"roof & more", "int8", 50, 3000, {{"ffn", 0.5, 20, 0.6, true}, {"logits", 200, 900, 0.1, false}}};
  CurveChart curve{
      "depths", "depth", "tokens/s", false, {{"tg", {{0, 100}, {4096, 80}, {16384, 50}}}, {"one", {{0, 3}}}}};
  for (const std::string& svg : {bars_svg(bars), roofline_svg(roof), curves_svg(curve), bars_svg({}), roofline_svg({}),
                                 curves_svg({}), batch_curve_svg("m", {{"tg", {{1, 10}, {2, 19}, {32, 100}}}})}) {
    CHECK(well_formed(svg));
    CHECK(contains(svg, "prefers-color-scheme:dark"));
    CHECK_FALSE(contains(svg, "nan"));
    CHECK_FALSE(contains(svg, "inf"));
  }
  CHECK(count(bars_svg(bars), "<rect") == 2 + 2);  // two of the legend
  CHECK(contains(roofline_svg(roof), "50 GB/s read"));
  CHECK(count(roofline_svg(roof), "<circle") == 2);
  CHECK(count(curves_svg(curve), "<polyline") == 2);
  CHECK(contains(bars_svg(bars), "a &lt; b"));
}

TEST_CASE("bench --roofline: stages of a prompt and of generation that add up, from the program") {
  const json rows = json_of({"-m", float_model(), "--roofline", "-d", "4"});
  std::map<std::string, double> sum, total, step;
  std::set<std::string> stages;
  for (const json& row : rows) {
    const std::string phase = row["phase"];
    (row["row"] == "step" ? step : row["row"] == "sum" ? total : sum)[phase] += row["us_per_token"].get<double>();
    stages.insert(row["stage"].get<std::string>());
    CHECK(row["read_bandwidth_gbps"] > 0);
    CHECK(row["n_depth"] == 4);
    if (row["row"] != "step") continue;
    CHECK(row["sum_us_per_token"].get<double>() == Approx(total[phase]));
    CHECK(row["sum_error"].get<double>() == Approx(total[phase] / step[phase] - 1));
    CHECK(std::set<std::string>{"memory", "compute", "launch", "host"}.count(row["bound"].get<std::string>()) == 1);
  }
  REQUIRE(total.size() == 2);
  for (const auto& [phase, us] : total) CHECK(sum[phase] == Approx(us).epsilon(1e-6));
  for (const char* stage :
       {"embed", "attn_in", "attention", "attn_out", "ffn", "logits", "between stages", "sum", "step"})
    CHECK(stages.count(stage) == 1);
  const Outcome table = bench({"-m", float_model(), "--roofline"});
  CHECK(table.status == 0);
  CHECK(contains(table.out, "bound by: "));
  CHECK(contains(table.out, "prompt, pp8"));
  CHECK(contains(table.out, "generation, tg3"));
}

TEST_CASE("bench --roofline -npl: a table to each number of sequences at once") {
  const json rows = json_of({"-m", float_model(), "--roofline", "-npl", "1,3", "-n", "2", "-p", "0"});
  std::map<int, double> flops, weights;
  for (const json& row : rows)
    if (row["row"] == "step")
      flops[row["n_seqs"]] = row["flops_per_token"], weights[row["n_seqs"]] = row["weight_bytes_per_token"];
  REQUIRE(flops.size() == 2);
  CHECK(flops[1] == Approx(flops[3]).epsilon(0.01));
  CHECK(weights[3] < 0.5 * weights[1]);
  const Outcome table = bench({"-m", float_model(), "--roofline", "-npl", "3"});
  CHECK(table.status == 0);
  CHECK(contains(table.out, ", 3 sequences at once, "));
  CHECK(contains(table.out, "a step makes 3 tokens"));
  check_refusals({{{"bench", "-m", tiny_bpe(), "--roofline", "-npl", "0"}, 2, "-npl: out of range"},
                  {{"bench", "-m", tiny_bpe(), "--roofline", "-npl", "2", "-npp", "8"}, 2, "-npp: means nothing"},
                  {{"bench", "-m", tiny_bpe(), "--roofline", "--arrival", "4/s"}, 2, "--arrival"}},
                 "never");
}

TEST_CASE("bench --ladder: all steps of a CPU, and a picture of them") {
  const std::string plot = path_in_folder("ladder.svg");
  const json rows = json_of({"-m", float_model(), "--ladder", "--plot", plot});
  REQUIRE(rows.size() >= 9);
  CHECK(rows.front()["quant"] == "F32");
  CHECK(rows.front()["pp_gain"].is_null());
  CHECK(rows[1]["quant"] == "BF16");
  CHECK(rows[1]["tg_gain"] > 0);
  CHECK(rows[1]["bytes_of_first"] < 0.6);
  CHECK(rows.back()["quant"] == "Q4_0");  // rows of 64 are too short for Q4_K
  int without = 0;
  for (const json& row : rows) without += row["without"].get<bool>();
  CHECK(without == 4);
  CHECK(well_formed(read_file(plot)));
  if (kSanitized) return;  // the rest quantises 135 million weights, by the code that quantised the tiny model
  const Outcome shape = bench({"--shape", "135m", "--ladder", "-p", "0", "-n", "1", "-r", "1", "--no-warmup"});
  CHECK(shape.status == 0);
  CHECK(contains(shape.out, "left out: threads: one core"));
  CHECK_FALSE(contains(shape.out, "pp"));
}

TEST_CASE("bench --host-overhead: time of the host per token") {
  const json rows = json_of({"-m", float_model(), "--host-overhead", "-n", "5,9"});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0]["n_gen"] == 5);
  CHECK(rows[0]["device_busy_share"] > 0);
  CHECK(rows[0]["device_busy_share"] <= 1);
  CHECK(rows[0]["launches_per_token"] == rows[1]["launches_per_token"]);
  CHECK(contains(bench({"-m", float_model(), "--host-overhead"}).out, "parallel regions"));
}

TEST_CASE("bench --plot draws the roofline and the depths") {
  const std::string roof = path_in_folder("roof.svg"), depths = path_in_folder("depths.svg");
  CHECK(bench({"-m", float_model(), "--roofline", "--plot", roof}).status == 0);
  CHECK(well_formed(read_file(roof)));
  CHECK(contains(read_file(roof), "operations per byte"));
  CHECK(bench({"-m", float_model(), "-d", "0,16,32", "--plot", depths}).status == 0);
  CHECK(count(read_file(depths), "<circle") == 6);
  CHECK(contains(read_file(depths), "tg3"));
}

TEST_CASE("bench --no-fusion=LIST switches fusions off one by one") {
  const json rows = json_of({"-m", float_model(), "--no-fusion=ffn,logits"});
  CHECK(rows[0]["fusion"] == true);
  CHECK(rows[0]["unfused"] == json::array({"ffn", "logits"}));
  CHECK(contains(bench({"-m", float_model(), "--no-fusion=attn_in"}).out, "no attn_in"));
  Call call;
  call.args = {"bench", "-m", float_model(), "-p", "4", "-n", "0", "-r", "1", "-o", "json"};
  call.environment = {"INFER_NO_FUSION=attn_out"};
  CHECK(json::parse(run(call).out)[0]["unfused"] == json::array({"attn_out"}));
  call.environment = {"INFER_NO_FUSION=1"};
  CHECK(json::parse(run(call).out)[0]["fusion"] == false);
  call.environment = {"INFER_NO_FUSION=0"};
  CHECK(json::parse(run(call).out)[0]["fusion"] == true);
}

TEST_CASE("bench: explanations refuse by name what they do not go with") {
  const std::string model = float_model();
  check_refusals({{{"bench", "-m", model, "--roofline", "--ladder"}, 2, "one table at a time"},
                  {{"bench", "--roofline"}, 2, "no model given"},
                  {{"bench", "-m", model, "--shape", "1b", "--ladder"}, 2, "--shape"},
                  {{"bench", "-m", model, "--roofline", "-pg", "8,8"}, 2, "-pg"},
                  {{"bench", "-m", model, "--roofline", "--levels", "q8_0"}, 2, "--levels"},
                  {{"bench", "-m", model, "--ladder", "--quant", "q8_0"}, 2, "--quant"},
                  {{"bench", "-m", model, "--ladder", "--no-fusion"}, 2, "has steps for what"},
                  {{"bench", "-m", model, "--ladder", "-p", "8,16"}, 2, "one value only"},
                  {{"bench", "-m", model, "--ladder", "--device", "ref"}, 2, "the reference has one way"},
                  {{"bench", "-m", model, "--host-overhead", "-n", "0"}, 2, "nothing to look at"},
                  {{"bench", "-m", model, "--host-overhead", "--plot", path_in_folder("never.svg")}, 2, "--plot"},
                  {{"bench", "-m", model, "--roofline", "-o", "yaml"}, 2, "yaml"},
                  {{"bench", "-m", model, "--no-fusion=rope"}, 2, "rope"},
                  {{"bench", "-m", model, "--roofline", "--plot", "/nonexistent/x.svg"}, 1, "No such file"}},
                 path_in_folder("never.svg"));
}
