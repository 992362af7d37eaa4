// Many calls of the program without starting it: under AddressSanitizer that takes far longer than what is asked of it.
#pragma once

#include "tests/tools/program.h"

namespace infer::test {

/// The outcomes of run_program() with each of these arguments, in forked processes that take one after the other. A
/// call that ends its process, or takes longer than `timeout_seconds`, has the status -N, of signal N or exit(N), and
/// the next process goes on after it. Memory that a process has lost is reported in `err` of its last call, with
/// kLeaked.
constexpr int kLeaked = -1001;
std::vector<Outcome> run_forked(const std::vector<std::vector<std::string>>& calls, unsigned timeout_seconds);

}  // namespace infer::test
