// `infer bench --save` and `--against`: results kept in a file, and the same tests found in it again. The file is what
// `infer bench -o json` prints; it is not trusted.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tools/bench.h"

namespace infer::tools {

class Baseline {
 public:
  /// Throws Error: run (unreadable), usage (not what `infer bench -o json` writes, by field).
  explicit Baseline(const std::string& path);
  /// tok/s of the repetitions of the row's test. Throws Error(usage) naming what of model, device or test is another,
  /// or that there were too few repetitions. The row's n_threads may be 0: not known yet.
  const std::vector<double>& samples_of(const BenchRow& row) const;

 private:
  struct Test {
    BenchRow row;  ///< the fields by which tests are told apart
    std::vector<double> rates;
  };
  std::string path_;
  std::vector<Test> tests_;
};

/// Writes the records as one JSON array; whole or not at all. Throws Error(run).
void save_records(const std::string& path, const nlohmann::ordered_json& records);
/// Throws Error(run) now rather than after the measurements.
void require_folder_writable(const std::string& path);

}  // namespace infer::tools
