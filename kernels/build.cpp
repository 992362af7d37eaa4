// Asks the compiler; see build.h.
#include "kernels/build.h"

namespace infer {

const char* build_kind() {
#if defined(__SANITIZE_ADDRESS__)
  return "sanitized";
#elif defined(__OPTIMIZE__)
  return "optimised";
#else
  return "not optimised";
#endif
}

}  // namespace infer
