// What the modes of `infer bench` for many sequences measure: one model or shape, and one value of every setting.
#pragma once

#include <string>
#include <vector>

#include "tools/bench.h"
#include "tools/bench_flags.h"
#include "tools/bench_run.h"

namespace infer::tools {

class BenchSubject {
 public:
  /// Throws Error(usage) naming the first flag that means nothing in a table of `mode`.
  BenchSubject(const BenchFlags& flags, const std::string& mode);

  /// Loads the model, and measures the machine's limits if they were asked for.
  void open();
  const Model& model() const { return *model_; }
  /// Settings of its engine, but for the sizes that a row gives.
  EngineOptions engine_options() const;
  /// What every row says of machine and model.
  BenchRow row() const;
  bool wants_limits() const { return flags_.bandwidth; }

 private:
  const BenchFlags& flags_;
  BenchCase case_;
  ModelFlags opener_;
  std::optional<Model> model_;
  Limits limits_;
};

/// A Markdown table or records, row by row as they are measured.
class RowStream {
 public:
  RowStream(const std::string& form, std::vector<TableColumn> columns);
  bool is_table() const { return records_.is_table(); }
  void add(const std::vector<std::string>& cells, const nlohmann::ordered_json& record);
  /// `last`: below the table.
  void end(const std::string& last);

 private:
  RecordText records_;
  std::vector<TableColumn> columns_;
  bool any_ = false;
};

/// Runs `measure`; a row that does not fit is told on stderr and left out: false, and `status` becomes 4.
bool measured_or_told(const std::string& name, int& status, const std::function<void()>& measure);

}  // namespace infer::tools
