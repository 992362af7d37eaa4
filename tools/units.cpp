// The units of units.h.
#include "tools/units.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/arguments.h"

namespace infer::tools {
namespace {

struct Unit {
  const char* name;
  double seconds;
};
constexpr Unit kUnits[] = {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}};
constexpr double kWeek = 7 * 24 * 3600;

const Unit* find_unit(const std::string& name) {
  for (const Unit& unit : kUnits)
    if (name == unit.name) return &unit;
  return nullptr;
}

}  // namespace

double parse_duration(const std::string& flag, const std::string& text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const Unit* unit = find_unit(text.substr(digits));
  if (digits == 0 || !unit)
    throw Error(ErrorKind::usage, flag, "bad time", "'" + escaped(text) + "'", "a number with us, ms, s, m or h: 50ms");
  return parse_real(flag, text.substr(0, digits), 1e-6 / unit->seconds, kWeek / unit->seconds) * unit->seconds;
}

double parse_rate(const std::string& flag, const std::string& text) {
  const size_t slash = std::min(text.find('/'), text.size());
  const std::string per = slash < text.size() ? text.substr(slash + 1) : "";
  const Unit* unit = per == "s" || per == "m" || per == "h" ? find_unit(per) : nullptr;
  if (slash == 0 || !unit)
    throw Error(ErrorKind::usage, flag, "bad rate", "'" + escaped(text) + "'", "a number with /s, /m or /h: 4/s");
  return parse_real(flag, text.substr(0, slash), 1e-6, 1e6) / unit->seconds;
}

double parse_percent(const std::string& flag, const std::string& text) {
  const std::string number = text.ends_with('%') ? text.substr(0, text.size() - 1) : text;
  return parse_real(flag, number, 0, 99.9) / 100;
}

std::string duration_text(double seconds) {
  const auto digits = [](double value) { return value < 9.995 ? 2 : value < 99.95 ? 1 : 0; };
  if (seconds >= 0.9995) return fmt::format("{:.{}f} s", seconds, digits(seconds));
  const double ms = seconds * 1e3;
  return fmt::format("{:.{}f} ms", ms, digits(ms));
}

}  // namespace infer::tools
