// Command lines as a table of flags: names, value, group, help, setter. One table gives parsing, the environment
// (INFER_<LONG_NAME>), grouped help, the nearest name for a typing error, and bash completion. Knows nothing of models.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "infer/error.h"

namespace infer::tools {

struct Flag {
  std::vector<std::string> names;  ///< "-n", "--predict"; the long ones name environment variables too
  std::string value;               ///< shown in the help: "N"; empty for a switch
  std::string help;
  std::function<void(const std::string& text)> set;  ///< switches get ""
  std::string group;
  bool optional = false;  ///< the value is: --flag or --flag=VALUE; without it, set gets ""
};

class Arguments {
 public:
  /// `usage` is the first line of the help, `summary` the text below it.
  Arguments(std::string usage, std::string summary) : usage_(std::move(usage)), summary_(std::move(summary)) {}

  Arguments& group(const std::string& title);  ///< flags added from here on belong to it
  Arguments& add(std::vector<std::string> names, std::string value, std::string help,
                 std::function<void(const std::string&)> set);
  // Typed forms; the error for a bad value names flag, found and allowed.
  Arguments& text(std::vector<std::string> names, std::string value, std::string help, std::string* target);
  Arguments& integer(std::vector<std::string> names, std::string value, std::string help, int64_t* target,
                     int64_t min = std::numeric_limits<int64_t>::min(),
                     int64_t max = std::numeric_limits<int64_t>::max());
  Arguments& real(std::vector<std::string> names, std::string value, std::string help, float* target, float min,
                  float max);
  Arguments& flag(std::vector<std::string> names, std::string help, bool* target, bool becomes = true);
  /// A switch that takes --flag=VALUE too.
  Arguments& switch_or(std::vector<std::string> names, std::string value, std::string help,
                       std::function<void(const std::string&)> set);
  /// Accepted for the sake of old habits, without effect.
  Arguments& ignored(std::vector<std::string> names, bool takes_value);
  Arguments& positional(std::string name, std::function<void(const std::string&)> set);

  /// Environment first, then the command line. Throws Error(usage). Returns false when help was asked for.
  bool parse(const std::vector<std::string>& args);
  std::string help() const;
  std::vector<std::string> flag_names() const;

 private:
  const Flag* find(const std::string& name) const;
  [[noreturn]] void unknown(const std::string& name) const;
  void read_environment() const;

  std::string usage_, summary_, group_, positional_name_;
  std::vector<Flag> flags_;
  std::function<void(const std::string&)> positional_;
};

/// Strict numbers: the whole text must be one. Errors name `what`.
int64_t parse_integer(const std::string& what, const std::string& text, int64_t min, int64_t max);
double parse_real(const std::string& what, const std::string& text, double min, double max);
/// "1,2,3" (spaces and brackets allowed) to ids.
std::vector<int32_t> parse_ids(const std::string& what, const std::string& text);
/// The known name with the smallest edit distance, or "" when none is near.
std::string nearest(const std::string& name, const std::vector<std::string>& known);

}  // namespace infer::tools
