// Tables and records as text: Markdown with aligned columns, and csv, json or jsonl of the same rows.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace infer::tools {

struct TableColumn {
  std::string title;
  size_t width;
  bool right;
};
std::string table_head(const std::vector<TableColumn>& columns);
/// One cell to a column; a longer one pushes the rest of its line aside.
std::string table_row(const std::vector<TableColumn>& columns, const std::vector<std::string>& cells);

/// A whole table, its columns as wide as their longest cell at least.
std::string table_text(std::vector<TableColumn> columns, const std::vector<std::vector<std::string>>& rows);

/// Records one after the other in a form that programs read.
class RecordText {
 public:
  /// Throws Error(usage) for another form than md, csv, json and jsonl.
  explicit RecordText(const std::string& form);
  bool is_table() const { return form_ == "md"; }
  /// Text to print; csv quotes as llama-bench does and leaves arrays out.
  std::string add(const nlohmann::ordered_json& record);
  std::string end() const;

 private:
  std::string form_;
  int64_t n_records_ = 0;
};

}  // namespace infer::tools
