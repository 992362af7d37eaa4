// Measures the limits of limits.h with CUDA events. Nothing of it outlives a call.
#include "kernels/cuda/limits.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/matmul_lt.h"

namespace infer::cuda {
namespace {

constexpr size_t kReadBytes = size_t{4} << 30;
constexpr size_t kCopyBytes = size_t{256} << 20;
constexpr int64_t kProductSize = 8192;
constexpr double kSeconds = 0.25;  ///< of timed work, about

class Block {
 public:
  /// Null when there is too little memory.
  explicit Block(size_t bytes) {
    if (cudaMalloc(&data_, bytes) != cudaSuccess) {
      cudaGetLastError();
      data_ = nullptr;
    }
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    if (data_) cudaFree(data_);
  }
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

int sm_count() {
  int device = 0, n_sms = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return n_sms;
}

Stream new_stream() {
  Stream stream;
  check(cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking), "cudaStreamCreate");
  return stream;
}

/// Milliseconds of the quickest of up to 20 runs after one that does not count.
double best_ms(const std::function<void()>& launch, cudaStream_t stream) {
  Event begin, end;
  check(cudaEventCreate(begin.out()), "cudaEventCreate");
  check(cudaEventCreate(end.out()), "cudaEventCreate");
  double best = 0, total = 0;
  for (int i = 0; i < 21 && total < kSeconds * 1e3; ++i) {
    check(cudaEventRecord(begin.get(), stream), "cudaEventRecord");
    launch();
    check(cudaEventRecord(end.get(), stream), "cudaEventRecord");
    check(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "cudaEventElapsedTime");
    total += ms;
    if (i == 0) continue;
    best = best == 0 ? ms : std::min<double>(best, ms);
  }
  return best > 0 ? best : total;
}

/// GB/s of the quickest of four copies after one that does not count, by the host's clock: copies of pageable memory
/// are partly its own work.
double copy_gbps(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    check(cudaMemcpy(to, from, bytes, kind), "cudaMemcpy");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) best = std::max(best, static_cast<double>(bytes) / seconds / 1e9);
  }
  return best;
}

class PinnedBlock {
 public:
  explicit PinnedBlock(size_t bytes) { check(cudaMallocHost(&data_, bytes), "cudaMallocHost"); }
  PinnedBlock(const PinnedBlock&) = delete;
  PinnedBlock& operator=(const PinnedBlock&) = delete;
  ~PinnedBlock() { cudaFreeHost(data_); }
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

[[noreturn]] void too_little(const char* what, size_t bytes) {
  throw Error(ErrorKind::does_not_fit, "device memory", std::string("too little is free to measure ") + what, "",
              std::to_string(bytes >> 20) + " MiB or more");
}

}  // namespace

double read_bandwidth_gbps() {
  const int n_sms = sm_count();
  const Stream stream = new_stream();
  for (const size_t bytes : {kReadBytes, kReadBytes / 4}) {
    const Block data(bytes), sink(sizeof(uint32_t));
    if (!data.get() || !sink.get()) continue;
    random_bf16(data.get(), static_cast<int64_t>(bytes / 2), n_sms, stream.get());
    const double ms = best_ms(
        [&] { read_memory(data.get(), bytes, static_cast<uint32_t*>(sink.get()), n_sms, stream.get()); }, stream.get());
    return static_cast<double>(bytes) / ms / 1e6;
  }
  too_little("its bandwidth", kReadBytes / 4);
}

CopySpeeds copy_speeds(int index) {
  check(cudaSetDevice(index), "cudaSetDevice");
  const Stream stream = new_stream();
  for (const size_t bytes : {kCopyBytes, kCopyBytes / 4}) {
    const Block device(bytes), from(4 * bytes), to(4 * bytes);
    if (!device.get() || !from.get() || !to.get()) continue;
    CopySpeeds speeds;
    {
      const PinnedBlock pinned(bytes);
      speeds.pinned_to_device = copy_gbps(device.get(), pinned.get(), bytes, cudaMemcpyHostToDevice);
      speeds.pinned_from_device = copy_gbps(pinned.get(), device.get(), bytes, cudaMemcpyDeviceToHost);
    }
    std::vector<char> pageable(bytes, 1);
    speeds.pageable_to_device = copy_gbps(device.get(), pageable.data(), bytes, cudaMemcpyHostToDevice);
    speeds.pageable_from_device = copy_gbps(pageable.data(), device.get(), bytes, cudaMemcpyDeviceToHost);
    random_bf16(from.get(), static_cast<int64_t>(2 * bytes), sm_count(), stream.get());
    const double ms = best_ms(
        [&] {
          check(cudaMemcpyAsync(to.get(), from.get(), 4 * bytes, cudaMemcpyDeviceToDevice, stream.get()), "cudaMemcpy");
        },
        stream.get());
    speeds.on_device = static_cast<double>(4 * bytes) / ms / 1e6;
    return speeds;
  }
  too_little("its copies", 9 * kCopyBytes / 4);
}

double tensor_peak_tflops() {
  const int n_sms = sm_count();
  const Stream stream = new_stream();
  for (const int64_t size : {kProductSize, kProductSize / 2}) {
    const auto bytes = static_cast<size_t>(size * size) * sizeof(uint16_t);
    const Block x(bytes), w(bytes), y(bytes);
    if (!x.get() || !w.get() || !y.get()) continue;
    std::string why_not;
    const auto lt = MatmulLt::open(why_not);
    if (!lt) throw Error(ErrorKind::run, "cuBLASLt", "the tensor cores' peak cannot be measured: " + why_not);
    for (void* data : {x.get(), w.get()}) random_bf16(data, size * size, n_sms, stream.get());
    const Tensor a(x.get(), DType::BF16, {size, size}), b(w.get(), DType::BF16, {size, size});
    const Tensor out(y.get(), DType::BF16, {size, size});
    const double ms = best_ms([&] { lt->matmul(a, size, b, size, out, size, 0, stream.get()); }, stream.get());
    const auto s = static_cast<double>(size);
    return 2 * s * s * s / ms / 1e9;
  }
  too_little("the tensor cores", static_cast<size_t>(kProductSize * kProductSize) * 3 / 2);
}

}  // namespace infer::cuda
