// How the library was compiled, for people whose figures surprise them.
#pragma once

namespace infer {

/// "optimised", "not optimised" (a debug build), "sanitized".
const char* build_kind();

}  // namespace infer
