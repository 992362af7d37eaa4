// The file of crossover_file.h: {"infer": "crossovers", "rows": [{"device", "build", "format", "program_most", ...}]}.
#include "tools/crossover_file.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "tools/baseline.h"
#include "tools/bench_records.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr size_t kMostBytes = size_t{1} << 20, kMostRows = 1000;

struct Row {
  std::string build;
  Crossover crossover;
};

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorKind::run, why); }

std::string text_of(const json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_string() || found->get_ref<const std::string&>().empty())
    refuse(fmt::format("{} is no text", key));
  return *found;
}

int64_t number_of(const json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_number_integer()) refuse(fmt::format("{} is no whole number", key));
  return *found;
}

Row row_of(const json& row) {
  if (!row.is_object()) refuse("no object");
  Row out{text_of(row, "build"),
          {text_of(row, "device"), text_of(row, "format"), number_of(row, "program_most"), number_of(row, "few_least"),
           number_of(row, "wide_least")}};
  validate({out.crossover});
  return out;
}

/// Throws Error saying what is wrong.
std::vector<Row> rows_of(const std::string& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) refuse("no file");
  if (fs::file_size(path, error) > kMostBytes || error) refuse("too large");
  json all;
  try {
    all = json::parse(read_text_file(path));
  } catch (const json::exception& e) {
    refuse("no JSON: " + escaped(e.what(), 100));
  }
  if (!all.is_object() || !all.contains("infer") || all["infer"] != "crossovers" || !all.contains("rows") ||
      !all["rows"].is_array() || all["rows"].size() > kMostRows)
    refuse("not a file of infer bench --autotune");
  std::vector<Row> out;
  for (const json& row : all["rows"]) try {
      out.push_back(row_of(row));
    } catch (const Error& e) {
      refuse(fmt::format("row {}: {}", out.size() + 1, e.what()));
    }
  return out;
}

ordered_json record(const Row& row) {
  const Crossover& c = row.crossover;
  return {{"device", c.device},       {"build", row.build},
          {"format", c.format},       {"program_most", c.program_most},
          {"few_least", c.few_least}, {"wide_least", c.wide_least}};
}

/// Whether `saved` has nothing to say any more once `rows` are there.
bool replaced(const Row& saved, const std::string& build, const std::vector<Crossover>& rows) {
  for (const Crossover& row : rows)
    if (row.device == saved.crossover.device && (saved.build != build || row.format == saved.crossover.format))
      return true;
  return false;
}

}  // namespace

std::string crossover_path() {
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (cache && *cache) return std::string(cache) + "/infer/crossovers.json";
  return home && *home ? std::string(home) + "/.cache/infer/crossovers.json" : std::string();
}

SavedCrossovers read_crossovers(const std::string& path, const std::string& build) {
  SavedCrossovers out;
  std::error_code error;
  if (path.empty() || !fs::exists(path, error)) return out;
  std::vector<Row> rows;
  try {
    rows = rows_of(path);
  } catch (const Error& e) {
    out.problem = fmt::format("{} is ignored: {}; infer bench --autotune writes a new one", escaped(path), e.what());
    return out;
  }
  for (const Row& row : rows)
    if (row.build == build) out.rows.push_back(row.crossover);
  if (out.rows.empty() && !rows.empty())
    out.problem =
        fmt::format("{} is ignored: measured by infer {}, and this is {}; infer bench --autotune measures anew",
                    escaped(path), escaped(rows.back().build), build);
  return out;
}

void write_crossovers(const std::string& path, const std::string& build, const std::vector<Crossover>& rows) {
  validate(rows);
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  if (error) throw Error(ErrorKind::run, escaped(path), error.message());
  ordered_json list = ordered_json::array();
  try {
    for (const Row& saved : rows_of(path))
      if (!replaced(saved, build, rows)) list.push_back(record(saved));
  } catch (const Error&) {  // what it held was of no use to anyone
    list = ordered_json::array();
  }
  for (const Crossover& row : rows) list.push_back(record({build, row}));
  save_records(path, {{"infer", "crossovers"}, {"rows", list}});
}

void use_saved_crossovers(LoadOptions& load) {
  if (load.device == "cpu" || load.device == "ref" || !load.crossovers.empty() || list_gpus().empty()) return;
  const SavedCrossovers saved = read_crossovers(crossover_path(), build_id());
  load.crossovers = saved.rows;
  static bool told = false;
  if (!saved.problem.empty() && !std::exchange(told, true)) note("{}\n", saved.problem);
}

}  // namespace infer::tools
