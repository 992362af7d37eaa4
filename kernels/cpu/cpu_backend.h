// How the rest of the program gets the CPU backend; see cpu_stages.h for what it is.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace infer {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace infer
