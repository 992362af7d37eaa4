// Independent tasks on a few threads, with progress reported from the calling thread. For loading; steps have their own
// threads in the backend.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace infer {

/// Runs task(i) for every i in [0, work.size()), in ascending order of start, on up to `n_threads` threads. `progress`
/// (may be null) is called on this thread with the share of the summed `work` done; when it returns false no further
/// task starts. Returns false if it was stopped that way. If tasks throw, the exception of the lowest index is
/// rethrown.
bool run_parallel(const std::vector<double>& work, int n_threads, const std::function<void(size_t)>& task,
                  const std::function<bool(double)>& progress);

}  // namespace infer
