// Crossovers as people and files name them, and as backends take them: checked here.
#pragma once

#include <vector>

#include "infer.h"
#include "kernels/crossovers.h"

namespace infer {

/// Throws Error(usage) naming the first field that is out of range, or a format that there is not.
std::vector<FormatCrossovers> checked_crossovers(const std::vector<Crossover>& rows);
std::vector<Crossover> public_crossovers(const std::vector<FormatCrossovers>& rows);

}  // namespace infer
