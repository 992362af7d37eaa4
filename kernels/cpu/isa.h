// Which instruction set the CPU kernels use. Asked of the CPU once at start, or forced by name for tests; knows nothing
// of what is computed. A level counts as present only if the operating system saves its registers too.
#pragma once

#include <string>

namespace infer::cpu {

enum class Isa {
  scalar,  ///< any x86-64
  avx2,    ///< AVX2, FMA, F16C, BMI2
  avx512,  ///< AVX-512 F BW DQ VL VNNI BF16 VBMI (Zen 4, Sapphire Rapids and later)
};

bool isa_available(Isa isa);
Isa best_isa();
const char* to_string(Isa isa);
/// Throws Error(usage) for an unknown name and for a level that this machine lacks.
Isa parse_isa(const std::string& name);

}  // namespace infer::cpu
