// Times, rates and shares as people write them: a number and a unit, both required (but for %): "50ms", "4/s", "3%".
#pragma once

#include <string>

namespace infer::tools {

/// "500us", "50ms", "2.5s", "1m", "1h" in seconds, more than 0 and at most a week. Throws Error(usage) naming `flag`.
double parse_duration(const std::string& flag, const std::string& text);
/// "4/s", "90/m", "100/h" as times per second.
double parse_rate(const std::string& flag, const std::string& text);
/// "3%" or "3" to 0.03; from 0 to below 100 %. Throws Error(usage).
double parse_percent(const std::string& flag, const std::string& text);
/// "12.3 ms", "1.23 s": three digits, for tables.
std::string duration_text(double seconds);

}  // namespace infer::tools
