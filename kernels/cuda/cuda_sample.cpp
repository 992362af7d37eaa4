// The backend's part in running ahead of the host: draws on the device, pinned memory that the device writes to, and
// marks in the stream that the host can wait for while later work goes on.
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/sample.h"

namespace infer::cuda {

bool CudaBackend::samples(const SampleRow& row) const { return sample_row_supported(row); }

void CudaBackend::sample(const SampleArgs& args) {
  use_device();
  cuda::sample(args, stream_.get());
  counters_.launches += 2;
}

Buffer CudaBackend::allocate_pinned(size_t bytes) {
  use_device();
  void* data = nullptr;
  check(cudaHostAlloc(&data, bytes > 0 ? bytes : 1, cudaHostAllocPortable | cudaHostAllocMapped), "pin memory");
  std::memset(data, 0, bytes);
  ++allocations_;
  return Buffer(data, [hung = watch_.hung()](void* p) {
    if (!*hung) cudaFreeHost(p);
  });
}

uint64_t CudaBackend::mark() {
  use_device();
  Event& event = marks_[++n_marks_ % marks_.size()];
  if (!event) check(cudaEventCreateWithFlags(event.out(), cudaEventDisableTiming), "make an event");
  check(cudaEventRecord(event.get(), stream_.get()), "mark");
  return n_marks_;
}

void CudaBackend::wait_for(uint64_t mark) {
  // Only the wait for the last thing asked for leaves the device without work.
  if (mark == n_marks_) ++counters_.syncs;
  watch_.wait(marks_[mark % marks_.size()].get());
}

}  // namespace infer::cuda
