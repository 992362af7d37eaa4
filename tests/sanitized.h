// Whether the tests are compiled with AddressSanitizer: it reserves terabytes of addresses for itself, and all takes
// ten times as long. Tests of many combinations then take a part of them that has every value of each of its
// dimensions.
#pragma once

namespace infer::test {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

}  // namespace infer::test
