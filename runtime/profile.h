// What the two profiles share, and the seam for tests: profile_steps() on a backend of theirs.
#pragma once

#include <memory>
#include <vector>

#include "infer.h"
#include "runtime/model.h"

namespace infer {

/// Throws Error(usage) naming the field that is out of range.
void check_profile(const ProfileOptions& options);
/// The same for everybody.
std::vector<int32_t> random_ids(int64_t n, int64_t vocab);

/// `backend`: as of Engine::Impl, but never null.
StepProfile profile_steps(const Model::Impl& model, const EngineOptions& engine, const ProfileOptions& options,
                          std::unique_ptr<Backend> backend);

}  // namespace infer
