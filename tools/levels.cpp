// The rows of levels.h as Markdown and as records.
#include "tools/levels.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "tools/bench_records.h"
#include "tools/plot.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

double rate_of(const BenchRow& row) { return row.seconds.empty() ? 0 : mean_deviation(row.rates()).mean; }

struct Column {
  TableColumn head;
  std::function<std::string(const LevelRow&)> text;
};

std::string rate_text(const BenchRow& row) {
  const MeanDeviation m = mean_deviation(row.rates());
  return fmt::format("{:.1f} ± {:.1f}", m.mean, m.deviation);
}

std::vector<Column> quality_columns(const LevelRow& sample) {
  if (!sample.quality) return {};
  std::vector<Column> out;
  const auto add = [&](const char* title, size_t width, std::function<std::string(const Quality&)> text) {
    out.push_back({{title, width, true}, [=](const LevelRow& r) { return text(*r.quality); }});
  };
  const auto with_error = [](const Estimate& e, int digits) {
    return fmt::format("{:.{}f} ± {:.{}f}", e.value, digits, e.error, digits);
  };
  add("PPL", 16, [=](const Quality& q) { return with_error(q.ppl(), 3); });
  add("PPL ratio", 15, [=](const Quality& q) { return with_error(q.ratio(), 4); });
  add("mean KL", 17, [=](const Quality& q) { return with_error(q.kl(), 5); });
  add("median KL", 9, [](const Quality& q) { return fmt::format("{:.5f}", q.kl_percentile(0.5)); });
  add("99 % KL", 8, [](const Quality& q) { return fmt::format("{:.5f}", q.kl_percentile(0.99)); });
  add("same top", 8, [](const Quality& q) { return fmt::format("{:.1f} %", 100 * q.same_top().value); });
  out.push_back({{"best", 4, false}, [](const LevelRow& r) { return std::string(r.best ? "*" : ""); }});
  return out;
}

// Which columns there are is the same for all rows: the first one says.
std::vector<Column> columns_of(const std::vector<LevelRow>& rows, bool kv) {
  const LevelRow& first = rows.front();
  std::vector<Column> out = {{{"level", 6, false}, [](const LevelRow& r) { return r.level; }}};
  if (kv) {
    out.push_back({{"KiB/token", 9, true}, [](const LevelRow& r) {
                     return fmt::format("{:.2f}", static_cast<double>(r.kv_bytes_per_token) / 1024);
                   }});
  } else {
    out.push_back({{"size", 10, true}, [](const LevelRow& r) { return size_text(r.prompt.model_size); }});
    out.push_back({{"bits/w", 6, true}, [](const LevelRow& r) { return fmt::format("{:.2f}", r.bits_per_weight()); }});
  }
  if (!first.prompt.seconds.empty())
    out.push_back(
        {{first.prompt.test_name() + " t/s", 15, true}, [](const LevelRow& r) { return rate_text(r.prompt); }});
  if (!first.generation.seconds.empty()) {
    out.push_back(
        {{first.generation.test_name() + " t/s", 15, true}, [](const LevelRow& r) { return rate_text(r.generation); }});
    out.push_back({{"GB/s", 6, true}, [](const LevelRow& r) { return fmt::format("{:.1f}", r.gbps()); }});
    out.push_back({{"limit", 5, true}, [](const LevelRow& r) { return fmt::format("{:.0f} %", 100 * r.share()); }});
  }
  for (Column& column : quality_columns(first)) out.push_back(std::move(column));
  return out;
}

void add_quality(const LevelRow& row, const LevelsAbout& about, ordered_json& j) {
  const Quality& q = *row.quality;
  const auto put = [&](const std::string& key, const Estimate& e) { j[key] = e.value, j[key + "_error"] = e.error; };
  j["quality_file"] = about.text, j["quality_reference"] = about.source;
  j["quality_n_ctx"] = about.n_ctx, j["quality_n_tokens"] = q.n();
  put("ppl", q.ppl());
  put("ppl_base", q.base_ppl());
  put("ppl_ratio", q.ratio());
  put("kld_mean", q.kl());
  for (const auto& [name, p] :
       {std::pair("median", 0.5), {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1.0}})
    j[std::string("kld_") + name] = q.kl_percentile(p);
  put("delta_p_mean", q.delta_p());
  put("delta_p_rms", q.rms_delta_p());
  put("same_top", q.same_top());
  j["best"] = row.best;
}

ordered_json record(const LevelRow& row, const LevelsAbout& about) {
  ordered_json j = machine_record(row.prompt);
  j["level"] = row.level;
  j["bits_per_weight"] = row.bits_per_weight();
  if (about.kv) j["kv_bytes_per_token"] = row.kv_bytes_per_token;
  j["n_depth"] = row.generation.c.depth;
  j["test_time"] = row.prompt.test_time;
  for (const auto& [prefix, part] : {std::pair("pp", &row.prompt), {"tg", &row.generation}}) {
    if (part->seconds.empty()) continue;
    const MeanDeviation m = mean_deviation(part->rates());
    const std::string p = prefix;
    j[p == "pp" ? "n_prompt" : "n_gen"] = p == "pp" ? part->c.n_prompt : part->c.n_gen;
    j[p + "_avg_ts"] = m.mean, j[p + "_stddev_ts"] = m.deviation, j[p + "_samples_ts"] = part->rates();
  }
  j.update(limits_record(row.prompt));
  if (row.generation_rate() > 0) j["tg_gbps"] = row.gbps(), j["tg_share_of_limit"] = row.share();
  if (row.quality) add_quality(row, about, j);
  return j;
}

std::string footer(const std::vector<LevelRow>& rows, const LevelsAbout& about) {
  const BenchRow& any = rows.front().prompt;
  std::string out = fmt::format("\n{}, {}\n", any.on_gpu() ? any.gpu_info : any.cpu_info,
                                any.on_gpu()        ? "GPU"
                                : any.n_threads > 0 ? fmt::format("{} threads", any.n_threads)
                                                    : "CPU");
  if (rows.front().quality)
    out += fmt::format(
        "quality: {}, {} windows of {}, {} tokens scored, KL in nats from {}\n*: no other row is as fast and as near\n",
        escaped(about.text), about.n_windows, about.n_ctx, rows.front().quality->n(), escaped(about.source));
  return out + last_lines(any);
}

}  // namespace

double LevelRow::bits_per_weight() const {
  return 8.0 * static_cast<double>(prompt.model_size) / static_cast<double>(std::max<int64_t>(1, prompt.n_params));
}

double LevelRow::prompt_rate() const { return rate_of(prompt); }
double LevelRow::generation_rate() const { return rate_of(generation); }

double LevelRow::gbps() const {
  const BenchCase& c = generation.c;
  const double kv = static_cast<double>(kv_bytes_per_token) * static_cast<double>(c.depth + c.n_gen / 2);
  return generation_rate() * (static_cast<double>(generation.stream_bytes) + kv) / 1e9;
}

std::vector<bool> unbeaten(std::span<const Merit> merits) {
  std::vector<bool> out;
  for (const Merit& m : merits)
    out.push_back(std::none_of(merits.begin(), merits.end(), [&](const Merit& other) {
      return other.speed >= m.speed && other.loss <= m.loss && (other.speed > m.speed || other.loss < m.loss);
    }));
  return out;
}

void mark_best(std::vector<LevelRow>& rows) {
  std::vector<Merit> merits;
  for (const LevelRow& row : rows) {
    const double speed = row.generation_rate() > 0 ? row.generation_rate() : row.prompt_rate();
    if (!row.quality || speed == 0) return;
    merits.push_back({speed, row.quality->kl().value});
  }
  const std::vector<bool> best = unbeaten(merits);
  for (size_t i = 0; i < rows.size(); ++i) rows[i].best = best[i];
}

std::string levels_text(const std::string& form, const std::vector<LevelRow>& rows, const LevelsAbout& about) {
  RecordText records(form);
  if (!records.is_table()) {
    std::string out;
    for (const LevelRow& row : rows) out += records.add(record(row, about));
    return out + records.end();
  }
  if (rows.empty()) return {};
  const std::vector<Column> columns = columns_of(rows, about.kv);
  std::vector<TableColumn> heads;
  for (const Column& column : columns) heads.push_back(column.head);
  std::vector<std::vector<std::string>> cells;
  for (const LevelRow& row : rows) {
    cells.emplace_back();
    for (const Column& column : columns) cells.back().push_back(column.text(row));
  }
  return table_text(heads, cells) + footer(rows, about);
}

std::string levels_plot(const std::vector<LevelRow>& rows, const LevelsAbout& about) {
  Plot plot;
  plot.title = fmt::format("{}: quality against speed", about.kv ? "KV cache" : "Levels");
  const bool generates = !rows.empty() && rows.front().generation_rate() > 0;
  plot.x_title = fmt::format("{}, tokens/s (more is better)", generates ? "generation" : "prompt");
  plot.y_title = "mean KL divergence, nats (less is better)";
  for (const LevelRow& row : rows)
    plot.points.push_back({row.level, generates ? row.generation_rate() : row.prompt_rate(), row.quality->kl().value,
                           row.quality->kl().error, row.best});
  return scatter_svg(plot);
}

}  // namespace infer::tools
