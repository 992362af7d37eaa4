// The steps of ladder.h, and the rows as Markdown, as records and as bars.
#include "tools/ladder.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "tools/bench_records.h"
#include "tools/charts.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

/// Each fusion, with what guides promise of it.
struct Fusion {
  const char *stage, *name, *guides;
};
constexpr Fusion kFusions[] = {
    {"attn_in", "norm + q, k, v + rotation", "1.3-1.8x"},
    {"attn_out", "projection + residual", "1.2-1.5x"},
    {"ffn", "norm + gate, up + SiLU + down", "1.5-2x"},
    {"logits", "norm + head", ""},
};

/// `whole` is a copy, since it may lie in `steps`.
void add_fusions(const LadderStep whole, std::vector<LadderStep>& steps) {
  for (const Fusion& fusion : kFusions) {
    LadderStep step = whole;
    step.name = fmt::format("  without {} ({})", fusion.stage, fusion.name);
    step.guides = fusion.guides;
    step.unfused = {fusion.stage};
    step.without = true;
    steps.push_back(step);
  }
}

std::string isa_name(const std::string& isa) { return isa == "avx2" ? "AVX2" : isa == "avx512" ? "AVX-512" : isa; }

const char* const kInt8Promise = "1/4 of F32's bytes";
const char* const kInt4Promise = "1/8 of F32's bytes";

double rate_of(const BenchRow& row) { return row.seconds.empty() ? 0 : mean_deviation(row.rates()).mean; }

std::string rate_text(const BenchRow& row) {
  const MeanDeviation m = mean_deviation(row.rates());
  return fmt::format("{:.1f} ± {:.1f}", m.mean, m.deviation);
}

/// Of the bytes that the first row's weights take.
double bytes_share(const std::vector<LadderRow>& rows, size_t i) {
  return static_cast<double>(rows[i].prompt.model_size) / static_cast<double>(rows.front().prompt.model_size);
}

double share(const LadderRow& row) { return row.gbps() / row.generation.bandwidth_gbps; }

double prompt_share(const LadderRow& row) {
  const double gops = row.prompt_rate() * 2 * static_cast<double>(row.prompt.matrix_params) / 1e9;
  return gops / (row.prompt.on_gpu() ? 1e3 * row.prompt.tensor_peak_tflops : row.prompt.int8_peak_gops);
}

struct Column {
  TableColumn head;
  std::function<std::string(const std::vector<LadderRow>&, size_t)> text;
};

std::vector<Column> columns_of(const std::vector<LadderRow>& rows) {
  using Rows = std::vector<LadderRow>;
  const LadderRow& first = rows.front();
  std::vector<Column> out = {
      {{"step", 6, false}, [](const Rows& r, size_t i) { return r[i].step.name; }},
      {{"size", 10, true}, [](const Rows& r, size_t i) { return size_text(r[i].prompt.model_size); }},
      {{"of the first", 5, true}, [](const Rows& r, size_t i) { return fmt::format("{:.2f}", bytes_share(r, i)); }}};
  const auto gain = [](double (LadderRow::*rate)() const) {
    return [rate](const Rows& r, size_t i) {
      const double times = ladder_gain(r, i, rate);
      return times > 0 ? fmt::format("{:.2f}x", times) : std::string();
    };
  };
  const auto percent = [](double (*part)(const LadderRow&)) {
    return [part](const Rows& r, size_t i) { return fmt::format("{:.0f} %", 100 * part(r[i])); };
  };
  if (!first.prompt.seconds.empty()) {
    out.push_back({{first.prompt.test_name() + " t/s", 10, true},
                   [](const Rows& r, size_t i) { return rate_text(r[i].prompt); }});
    out.push_back({{"gain", 6, true}, gain(&LadderRow::prompt_rate)});
    out.push_back({{"of peak", 5, true}, percent(prompt_share)});
  }
  if (!first.generation.seconds.empty()) {
    out.push_back({{first.generation.test_name() + " t/s", 10, true},
                   [](const Rows& r, size_t i) { return rate_text(r[i].generation); }});
    out.push_back({{"gain", 6, true}, gain(&LadderRow::generation_rate)});
    out.push_back({{"of read", 5, true}, percent(share)});
  }
  out.push_back({{"guides say", 10, false}, [](const Rows& r, size_t i) { return r[i].step.guides; }});
  return out;
}

ordered_json record(const std::vector<LadderRow>& rows, size_t i) {
  const LadderRow& row = rows[i];
  ordered_json j = machine_record(row.prompt);
  j.update(limits_record(row.prompt));
  j["test_time"] = row.prompt.test_time;
  j["step"] = row.step.name.substr(row.step.name.find_first_not_of(' '));
  j["without"] = row.step.without;
  j["quant"] = row.step.quant, j["isa"] = row.step.isa;
  j["n_depth"] = row.prompt.c.depth;
  j["bytes_of_first"] = bytes_share(rows, i);
  j["guides_say"] = row.step.guides;
  for (const auto& [prefix, part, rate] : {std::tuple("pp", &row.prompt, &LadderRow::prompt_rate),
                                           std::tuple("tg", &row.generation, &LadderRow::generation_rate)}) {
    if (part->seconds.empty()) continue;
    const std::string p = prefix;
    j[p == "pp" ? "n_prompt" : "n_gen"] = p == "pp" ? part->c.n_prompt : part->c.n_gen;
    const MeanDeviation m = mean_deviation(part->rates());
    j[p + "_avg_ts"] = m.mean, j[p + "_stddev_ts"] = m.deviation;
    const double gain = ladder_gain(rows, i, rate);
    j[p + "_gain"] = gain > 0 ? ordered_json(gain) : ordered_json(nullptr);
  }
  if (!row.prompt.seconds.empty()) j["pp_share_of_peak"] = prompt_share(row);
  if (!row.generation.seconds.empty()) j["tg_gbps"] = row.gbps(), j["tg_share_of_limit"] = share(row);
  return j;
}

std::string below(const std::vector<LadderRow>& rows, const std::vector<LadderOmission>& omissions) {
  const BenchRow& any = rows.front().prompt;
  std::string out = fmt::format("\n{}\n", any.on_gpu() ? any.gpu_info : any.cpu_info);
  out += "gain: over the step before; of a row \"without\", what the fusion gains: the step above over this row\n";
  for (const LadderOmission& o : omissions) out += fmt::format("left out: {}: {}\n", o.name, o.why);
  const auto rates = [&](double (LadderRow::*rate)() const) {
    double last = 0;
    for (const LadderRow& row : rows)
      if (!row.step.without) last = (row.*rate)();
    const double first = (rows.front().*rate)();
    return first > 0 ? fmt::format("{:.1f}x", last / first) : std::string("not measured");
  };
  out += fmt::format("from the first step to the last: prompt {}, generation {}\n", rates(&LadderRow::prompt_rate),
                     rates(&LadderRow::generation_rate));
  return out + last_lines(any);
}

}  // namespace

LadderPlan cpu_ladder(const std::string& sixteen, const std::string& four, const std::vector<std::string>& isas,
                      int n_threads) {
  LadderPlan plan;
  LadderStep step{.name = "F32, plain code, 1 thread",
                  .guides = "",
                  .quant = "F32",
                  .isa = "scalar",
                  .mode = "",
                  .fusion = false,
                  .n_threads = 1};
  const auto add = [&](const std::string& name, const std::string& guides) {
    step.name = name, step.guides = guides;
    plan.steps.push_back(step);
  };
  add(step.name, "");
  step.quant = sixteen;
  add("16 bit (" + sixteen + ")", "1.5-2x");
  step.fusion = true;
  add("fused stages", "");
  for (const std::string& isa : isas) {
    if (isa == "scalar") continue;
    step.isa = isa;
    add(isa_name(isa), "");
  }
  step.n_threads = n_threads;
  if (n_threads > 1)
    add(fmt::format("{} threads", n_threads), "");
  else
    plan.omissions.push_back({"threads", "one core"});
  add_fusions(plan.steps.back(), plan.steps);
  step.quant = "Q8_0";
  add("INT8 (Q8_0)", kInt8Promise);
  step.quant = four;
  add("INT4 (" + four + ")", kInt4Promise);
  plan.omissions.push_back(
      {"flash attention (guides say 2-4x)", "attention has no other form here: it is in every step"});
  plan.omissions.push_back({"graphs, persistent kernel", "a CPU launches nothing"});
  return plan;
}

LadderPlan gpu_ladder(const std::string& sixteen, const std::string& four) {
  LadderPlan plan;
  LadderStep step{
      .name = "F32, one op after another", .guides = "", .quant = "F32", .isa = "", .mode = "eager", .fusion = false};
  const auto add = [&](const std::string& name, const std::string& guides) {
    step.name = name, step.guides = guides;
    plan.steps.push_back(step);
  };
  add(step.name, "");
  step.quant = sixteen;
  add("16 bit (" + sixteen + ")", "1.5-2x");
  step.fusion = true;
  add("fused stages", "");
  step.mode = "graph";
  add("graphs", "");
  add_fusions(plan.steps.back(), plan.steps);
  step.mode = "persistent";
  add("persistent kernel", "");
  step.mode = "auto";
  step.quant = "Q8_0";
  add("INT8 (Q8_0)", kInt8Promise);
  step.quant = four;
  add("INT4 (" + four + ")", kInt4Promise);
  plan.omissions.push_back(
      {"flash attention (guides say 2-4x)", "attention has no other form here: it is in every step"});
  return plan;
}

double LadderRow::prompt_rate() const { return rate_of(prompt); }
double LadderRow::generation_rate() const { return rate_of(generation); }

double ladder_gain(const std::vector<LadderRow>& rows, size_t i, double (LadderRow::*rate)() const) {
  size_t before = i;
  while (before > 0 && rows[before - 1].step.without) --before;
  if (before == 0 || (rows[i].*rate)() == 0) return 0;
  const double other = (rows[before - 1].*rate)(), own = (rows[i].*rate)();
  if (other == 0) return 0;
  return rows[i].step.without ? other / own : own / other;
}

std::string ladder_text(const std::string& form, const std::vector<LadderRow>& rows,
                        const std::vector<LadderOmission>& omissions) {
  RecordText records(form);
  if (!records.is_table()) {
    std::string out;
    for (size_t i = 0; i < rows.size(); ++i) out += records.add(record(rows, i));
    return out + records.end();
  }
  if (rows.empty()) return {};
  const std::vector<Column> columns = columns_of(rows);
  std::vector<TableColumn> heads;
  for (const Column& column : columns) heads.push_back(column.head);
  std::vector<std::vector<std::string>> cells;
  for (size_t i = 0; i < rows.size(); ++i) {
    cells.emplace_back();
    for (const Column& column : columns) cells.back().push_back(column.text(rows, i));
  }
  return table_text(heads, cells) + below(rows, omissions);
}

std::string ladder_plot(const std::vector<LadderRow>& rows) {
  BarChart chart;
  chart.title = "Ladder";
  if (!rows.empty()) {
    const std::string& model = rows.front().prompt.c.model;
    chart.title += ": " + escaped(model.substr(model.rfind('/') + 1));
  }
  chart.x_title = "tokens/s, logarithmic";
  chart.series = {"generation", "prompt"};
  for (const LadderRow& row : rows) {
    std::string label = row.step.without ? "without " + row.step.unfused.front() : row.step.name;
    chart.rows.push_back({label, {row.generation_rate(), row.prompt_rate()}});
  }
  return bars_svg(chart);
}

}  // namespace infer::tools
