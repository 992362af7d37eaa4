// Whether a text is XML as far as the drawings of the program go.
#pragma once

#include <regex>
#include <string>
#include <vector>

namespace infer::test {

/// Elements are closed in the order in which they were opened, and attributes are quoted.
inline bool well_formed(const std::string& xml) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-zA-Z]+)((?: [a-zA-Z][a-zA-Z0-9-]*=\"[^\"<]*\")*)(/?)>");
  std::string rest = xml;
  for (std::smatch m; std::regex_search(rest, m, tag); rest = m.suffix()) {
    if (m.prefix().str().find('<') != std::string::npos) return false;
    if (m[1].length()) {
      if (open.empty() || open.back() != m[2]) return false;
      open.pop_back();
    } else if (!m[4].length()) {
      open.push_back(m[2]);
    }
  }
  return open.empty() && rest.find('<') == std::string::npos;
}

}  // namespace infer::test
