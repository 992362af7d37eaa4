// The questions to the CPU. The compiler's own probe is used: it reads cpuid and checks with xgetbv that the operating
// system saves the wide registers.
#include "kernels/cpu/isa.h"

#include "infer/error.h"

namespace infer::cpu {

bool isa_available(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vbmi");
  }
  return false;
}

Isa best_isa() {
  if (isa_available(Isa::avx512)) return Isa::avx512;
  return isa_available(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "?";
}

Isa parse_isa(const std::string& name) {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (name != to_string(isa)) continue;
    if (!isa_available(isa)) {
      throw Error(ErrorKind::usage, "isa", "this CPU or operating system lacks it", name,
                  std::string("at most ") + to_string(best_isa()));
    }
    return isa;
  }
  throw Error(ErrorKind::usage, "isa", "unknown instruction set", escaped(name), "scalar, avx2, avx512");
}

}  // namespace infer::cpu
