// Metadata that the caller puts in the place of what a file says (--override-kv KEY=TYPE:VALUE).
#pragma once

#include <vector>

#include "infer.h"  // MetadataOverride
#include "models/checkpoint.h"

namespace infer {

/// Throws Error(usage) for a malformed override.
void apply_overrides(Checkpoint& checkpoint, const std::vector<MetadataOverride>& overrides);

}  // namespace infer
