// Which GPUs a build of the CUDA backend runs on, from the list of architectures it was compiled for. Pure text and
// numbers, so that the rules are tested where there is no GPU.
#pragma once

#include <string>
#include <string_view>

namespace infer::cuda {

/// `list` is "90a" or "80,86,90a". An architecture with an "a" runs on exactly that one, a plain one on those of the
/// same major number from it on. A list of several comes with an intermediate form for sm_80, which drivers compile for
/// whatever is newer.
inline bool runs_on(std::string_view list, int major, int minor) {
  if (list.find(',') != list.npos && major >= 8) return true;
  while (!list.empty()) {
    const size_t end = list.find(',');
    std::string_view arch = list.substr(0, end);
    list.remove_prefix(end == list.npos ? list.size() : end + 1);
    const bool exact = !arch.empty() && arch.back() == 'a';
    if (exact) arch.remove_suffix(1);
    int number = 0;
    for (const char c : arch) number = c >= '0' && c <= '9' && number < 10000 ? number * 10 + (c - '0') : 100000;
    if (number / 10 == major && (exact ? number % 10 == minor : number % 10 <= minor)) return true;
  }
  return false;
}

/// CUDA's version numbers: 13000 is "13.0".
inline std::string version_text(int version) {
  return std::to_string(version / 1000) + '.' + std::to_string(version % 1000 / 10);
}

}  // namespace infer::cuda
