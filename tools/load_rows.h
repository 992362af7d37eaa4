// Columns and keys that the tables of load have in common.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tools/load_run.h"
#include "tools/table.h"

namespace infer::tools {

/// What was asked in a row.
struct LoadShape {
  double n_prompt = 0;  ///< tokens, the mean
  int64_t n_gen = 0;
};

std::vector<TableColumn> load_columns();
std::vector<std::string> load_cells(const LoadShape& shape, const LoadResult& result);
nlohmann::ordered_json load_record(const LoadShape& shape, const LoadResult& result);

}  // namespace infer::tools
