// Texts with units that flags take: durations and shares. Sizes are parse_size() of common.h.
#pragma once

#include <string>

namespace infer::tools {

/// "60s", "500ms", "2m", "90" (seconds) to seconds, above 0 and at most a week. Throws Error(usage).
double parse_duration(const std::string& flag, const std::string& text);

/// "3%" or "3" to 0.03; from 0 to below 100 %. Throws Error(usage).
double parse_percent(const std::string& flag, const std::string& text);

}  // namespace infer::tools
