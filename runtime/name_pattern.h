// A regular expression to be found in the names of tensors.
#pragma once

#include <memory>
#include <string>

namespace infer {

class NamePattern {
 public:
  /// Error(usage) that names `option` where the pattern is malformed.
  NamePattern(const std::string& pattern, const char* option);
  bool found_in(const std::string& name) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace infer
