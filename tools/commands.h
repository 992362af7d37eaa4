// The program as a function of its arguments.
#pragma once

#include "tools/common.h"

namespace infer::tools {

/// Runs the command that `args` (without the program's name) begins with. Never throws: what goes wrong is one line on
/// stderr and the exit status.
int run_program(const Args& args);

}  // namespace infer::tools
