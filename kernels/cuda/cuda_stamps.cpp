// Stamps of the CUDA backend: events of the stream that carry a time, so that what lies between two of them is measured
// by the device's own clock and the host need not wait while the work goes on.
#include "kernels/cuda/cuda_backend.h"

namespace infer::cuda {

uint64_t CudaBackend::stamp() {
  use_device();
  if (n_stamps_ == stamps_.size()) stamps_.emplace_back();
  Event& event = stamps_[n_stamps_];
  if (!event) check(cudaEventCreate(event.out()), "make an event");
  check(cudaEventRecord(event.get(), stream_.get()), "stamp");
  return n_stamps_++;
}

double CudaBackend::seconds_between(uint64_t first, uint64_t second) {
  if (first >= n_stamps_ || second >= n_stamps_) throw Error(ErrorKind::run, "stamp", "none of that number");
  use_device();
  watch_.wait(stamps_[second].get());
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, stamps_[first].get(), stamps_[second].get()), "time between stamps");
  return milliseconds * 1e-3;
}

}  // namespace infer::cuda
