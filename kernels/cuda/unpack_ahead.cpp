// Order between two streams by events, within what may be captured into a graph: a half's first use in a step or in a
// capture waits for everything before it; later uses wait only for the product that read the half last.
#include "kernels/cuda/unpack_ahead.h"

#include "kernels/cuda/e4m3.h"
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

void UnpackAhead::put(const Tensor& w, int64_t begin, int64_t n_rows, const Tensor& to, int64_t at,
                      cudaStream_t stream) {
  char* const rows = to.as<char>() + at * row_bytes(to.dtype, to.cols());
  if (to.dtype == DType::F8_E4M3) return unpack_e4m3(w, begin, n_rows, rows, row_scales(to) + at, stream);
  dequantize_rows(w, begin, n_rows, Tensor(rows, to.dtype, {n_rows, to.cols()}), stream);
}

Tensor UnpackAhead::unpack(const Tensor& w, int64_t begin_row, int64_t n_rows, DType type, int64_t epoch,
                           cudaStream_t stream) {
  const Tensor out(halves_[next_].memory, type, {n_rows, w.cols()});
  put(w, begin_row, n_rows, out, 0, begin(epoch, stream));
  finish(stream);
  return out;
}

Tensor UnpackAhead::unpack(std::initializer_list<const Tensor*> matrices, DType type, int64_t epoch,
                           cudaStream_t stream) {
  int64_t rows = 0, at = 0;
  for (const Tensor* w : matrices) rows += w->rows();
  const Tensor all(halves_[next_].memory, type, {rows, (*matrices.begin())->cols()});
  cudaStream_t own = begin(epoch, stream);
  for (const Tensor* w : matrices) {
    put(*w, 0, w->rows(), all, at, own);
    at += w->rows();
  }
  finish(stream);
  return all;
}

void UnpackAhead::release(cudaStream_t stream) {
  if (kBeside) check(cudaEventRecord(halves_[next_].released.get(), stream), "unpack weights");
  next_ = (next_ + 1) % halves_.size();
}

}  // namespace infer::cuda
