// See units.h.
#include "tools/units.h"

#include <algorithm>

#include "tools/arguments.h"

namespace infer::tools {

double parse_duration(const std::string& flag, const std::string& text) {
  constexpr double kLongest = 7 * 24 * 3600;
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string unit = text.substr(digits);
  const double factor = unit.empty() || unit == "s" ? 1 : unit == "ms" ? 1e-3 : unit == "m" ? 60 : 0;
  if (factor == 0 || digits == 0)
    throw Error(ErrorKind::usage, flag, "bad duration", "'" + escaped(text) + "'",
                "a number with ms, s or m: 500ms, 60s, 2m");
  const double seconds = parse_real(flag, text.substr(0, digits), 0, kLongest / factor) * factor;
  if (seconds < 1e-3) throw Error(ErrorKind::usage, flag, "too short", "'" + escaped(text) + "'", "1ms or more");
  return seconds;
}

double parse_percent(const std::string& flag, const std::string& text) {
  const std::string number = text.ends_with('%') ? text.substr(0, text.size() - 1) : text;
  return parse_real(flag, number, 0, 99.9) / 100;
}

}  // namespace infer::tools
