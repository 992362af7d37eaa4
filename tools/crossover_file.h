// What `infer bench --autotune` has found out, kept between runs: crossovers by GPU, build and format, in a JSON file
// of the user's cache folder that people may read, change and delete. The file is not trusted: what is wrong with it is
// told in one line, and nothing of it is used.
#pragma once

#include <string>
#include <vector>

#include "infer.h"

namespace infer::tools {

/// $XDG_CACHE_HOME/infer/crossovers.json, or in ~/.cache; empty where neither is set.
std::string crossover_path();

struct SavedCrossovers {
  std::vector<Crossover> rows;  ///< of this build, for all devices
  std::string problem;          ///< why there are none although there is a file; empty when all is well
};
/// Never throws for what the file holds; a file that is not there is no problem.
SavedCrossovers read_crossovers(const std::string& path, const std::string& build);

/// Puts the rows into the file in place of those of the same device and format, and of what other builds measured on
/// that device. Rows of other devices stay. Whole or not at all; throws Error(run).
void write_crossovers(const std::string& path, const std::string& build, const std::vector<Crossover>& rows);

/// Makes `load` use what the file has, where a GPU may compute; tells problems once on stderr.
void use_saved_crossovers(LoadOptions& load);

}  // namespace infer::tools
