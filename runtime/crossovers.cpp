// See crossovers.h.
#include "runtime/crossovers.h"

#include "quant/formats.h"

namespace infer {
namespace {

static_assert(Crossover::most_rows == kMostCrossoverRows && Crossover::most_program == kMostProgramRows);

void require(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw Error(ErrorKind::usage, std::string("crossovers, ") + field, "out of range", std::to_string(value),
                std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace

std::vector<FormatCrossovers> checked_crossovers(const std::vector<Crossover>& rows) {
  std::vector<FormatCrossovers> out;
  for (const Crossover& row : rows) {
    const FormatInfo* format = find_format(row.format);
    if (!format) throw Error(ErrorKind::usage, "crossovers", "no such format", "'" + escaped(row.format) + "'");
    require("program_most", row.program_most, 0, Crossover::most_program);
    require("few_least", row.few_least, 1, Crossover::never);
    require("wide_least", row.wide_least, 1, Crossover::never);
    out.push_back({row.device, format->id, {row.program_most, row.few_least, row.wide_least}});
  }
  return out;
}

void validate(const std::vector<Crossover>& rows) { checked_crossovers(rows); }

std::vector<Crossover> public_crossovers(const std::vector<FormatCrossovers>& rows) {
  std::vector<Crossover> out;
  for (const FormatCrossovers& row : rows)
    out.push_back({row.device, format_name(row.format), row.at.program_most, row.at.few_least, row.at.wide_least});
  return out;
}

}  // namespace infer
