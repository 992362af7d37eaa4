// Order between two streams by events, within what may be captured into a graph: a half's first use in a step or in a
// capture waits for everything before it; later uses wait only for the product that read the half last.
#include "kernels/cuda/unpack_ahead.h"

#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

/// 0 when the stream is not being captured.
unsigned long long capture_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  check(cudaStreamGetCaptureInfo(stream, &status, &id), "unpack weights");
  return status == cudaStreamCaptureStatusActive ? id : 0;
}

}  // namespace

void UnpackAhead::place(char* memory, size_t bytes) {
  // Rows of any length start at multiples of 256 bytes in every half.
  const size_t half_bytes = bytes / kHalves / 256 * 256;
  n_elements_ = static_cast<int64_t>(half_bytes / 2);
  for (size_t i = 0; i < halves_.size(); ++i) halves_[i].memory = memory + i * half_bytes, halves_[i].epoch = -1;
  if (!kBeside || stream_) return;
  check(cudaStreamCreateWithFlags(stream_.out(), cudaStreamNonBlocking), "make a stream");
  for (Half& half : halves_) {
    for (Event* event : {&half.unpacked, &half.released})
      check(cudaEventCreateWithFlags(event->out(), cudaEventDisableTiming), "make an event");
  }
}

/// The stream in which to unpack into the next half.
cudaStream_t UnpackAhead::begin(int64_t epoch, cudaStream_t stream) {
  if (!kBeside) return stream;
  Half& half = halves_[next_];
  const unsigned long long capture = capture_of(stream);
  if (half.epoch != epoch || half.capture != capture) {
    half.epoch = epoch, half.capture = capture;
    check(cudaEventRecord(half.released.get(), stream), "unpack weights");
  }
  check(cudaStreamWaitEvent(stream_.get(), half.released.get(), 0), "unpack weights");
  return stream_.get();
}

void UnpackAhead::finish(cudaStream_t stream) {
  if (!kBeside) return;
  Half& half = halves_[next_];
  check(cudaEventRecord(half.unpacked.get(), stream_.get()), "unpack weights");
  check(cudaStreamWaitEvent(stream, half.unpacked.get(), 0), "unpack weights");
}

Tensor UnpackAhead::unpack(const Tensor& w, int64_t begin_row, int64_t n_rows, DType type, int64_t epoch,
                           cudaStream_t stream) {
  const Tensor out(halves_[next_].memory, type, {n_rows, w.cols()});
  dequantize_rows(w, begin_row, n_rows, out, begin(epoch, stream));
  finish(stream);
  return out;
}

Tensor UnpackAhead::unpack(std::initializer_list<const Tensor*> matrices, DType type, int64_t epoch,
                           cudaStream_t stream) {
  const int64_t cols = (*matrices.begin())->cols();
  int64_t rows = 0;
  cudaStream_t own = begin(epoch, stream);
  for (const Tensor* w : matrices) {
    dequantize_rows(*w, 0, w->rows(), Tensor(halves_[next_].memory + rows * cols * 2, type, {w->rows(), cols}), own);
    rows += w->rows();
  }
  finish(stream);
  return Tensor(halves_[next_].memory, type, {rows, cols});
}

void UnpackAhead::release(cudaStream_t stream) {
  if (kBeside) check(cudaEventRecord(halves_[next_].released.get(), stream), "unpack weights");
  next_ = (next_ + 1) % halves_.size();
}

}  // namespace infer::cuda
