// How the rest of the program gets the oracle; see ref.h for what it computes.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace infer {

std::unique_ptr<Backend> make_ref_backend(const BackendOptions& options);

}  // namespace infer
