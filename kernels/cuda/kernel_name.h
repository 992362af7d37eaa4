// Names of kernels as people want to read them, from what the compiler makes of them: without return type, namespaces
// and parameters. Plain C++, part of every build.
#pragma once

#include <cxxabi.h>

#include <cstdlib>
#include <string>

namespace infer::cuda {

/// "void infer::cuda::f<infer::Q4_K, (int)8>(int)" becomes "f<Q4_K, 8>".
inline std::string short_kernel_name(std::string name) {
  const std::string noise[] = {"infer::cuda::", "infer::", "(anonymous namespace)::", "(int)", "(bool)", "void "};
  for (const std::string& part : noise)
    for (size_t at = name.find(part); at != name.npos; at = name.find(part)) name.erase(at, part.size());
  size_t depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {  // parameters begin where no "<" is open
    if (name[i] == '<') ++depth;
    if (name[i] == '>' && depth > 0) --depth;
    if (name[i] == '(' && depth == 0) name.resize(i);
  }
  constexpr size_t kMost = 60;
  if (name.size() > kMost) name = name.substr(0, kMost - 2) + "..";
  return name;
}

/// The same from a symbol; one that is not C++'s stays as it is.
inline std::string readable_kernel_name(const char* symbol) {
  int status = 0;
  char* const readable = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  const std::string name = status == 0 && readable ? readable : symbol;
  std::free(readable);
  return short_kernel_name(name);
}

}  // namespace infer::cuda
