// The backend's life and its memory: what is allocated, how bytes come and go, how weights get their form. A weight
// goes from the file's pages through pinned memory to the device, where a kernel moves its bits into tiles while the
// next part is being copied; every thread that loads has a lane of its own for that (staging.h).
#include <algorithm>
#include <cstring>
#include <thread>

#include "kernels/cuda/column_part.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_row.h"
#include "kernels/cuda/sizes.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/watched_backend.h"
#include "quant/formats.h"

namespace infer::cuda {

struct CudaBackend::Staging {
  static constexpr size_t kDownloadBytes = size_t{1} << 20;
  UploadRing ring;
  Pinned downloads{kDownloadBytes};
  Event zeroed;  ///< after the last allocation's memory was cleared: other streams wait for it before they write
  LanePool lanes;

  explicit Staging(int n_threads) : lanes(n_threads) {}
};

namespace {

const char* mode_name(Mode mode) {
  const char* const names[] = {"auto", "persistent", "graph", "eager"};
  return names[static_cast<int>(mode)];
}

Mode parse_mode(const std::string& name) {
  for (const Mode mode : {Mode::automatic, Mode::persistent, Mode::graph, Mode::eager})
    if (name == mode_name(mode) || (name.empty() && mode == Mode::automatic)) return mode;
  throw Error(ErrorKind::usage, "mode", "unknown", '"' + escaped(name) + '"', "auto, persistent, graph, eager");
}

std::string mebibytes(size_t bytes) { return std::to_string((bytes >> 20) + 1) + " MiB"; }

/// Where the bytes of a weight come from: memory, or what makes its rows from `first_row` on.
struct HostBytes {
  const char* data = nullptr;
  const MakeRows* make = nullptr;
  int64_t first_row = 0;
  size_t row_bytes = 1;

  /// n of them from `at` on; whole rows of what is made.
  void write(char* to, size_t at, size_t n) const {
    if (make)
      (*make)(first_row + static_cast<int64_t>(at / row_bytes), static_cast<int64_t>(n / row_bytes),
              reinterpret_cast<std::byte*>(to));
    else
      std::memcpy(to, data + at, n);
  }
};

/// Brings a part of up to Lane::kPartBytes to the device: `write` fills pinned memory, `place` enqueues what is to be
/// done with it.
template <class Write, class Place>
void send_part(Lane& lane, Write write, Place place) {
  Lane::Half& half = lane.halves[lane.next];
  lane.next ^= 1;
  half.pinned.reclaim();  // what has read the pinned half has read the device's too: both are of one stream
  write(half.pinned.data());
  place(half);
  half.pinned.in_use_until(lane.stream.get());
}

/// Brings bytes to the device part by part.
template <class Place>
void send(Lane& lane, const HostBytes& from, size_t bytes, size_t part_bytes, Place place) {
  for (size_t at = 0; at < bytes; at += part_bytes) {
    const size_t n = std::min(part_bytes, bytes - at);
    send_part(
        lane, [&](char* to) { from.write(to, at, n); }, [&](Lane::Half& half) { place(half, at, n); });
  }
}

void copy(void* dst, const void* pinned, size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(dst, pinned, bytes, cudaMemcpyHostToDevice, stream), "load weights");
}

Error too_long(size_t row_bytes, size_t most) {
  return {ErrorKind::bad_file, "weights", "rows too long for the cuda backend", std::to_string(row_bytes) + " bytes",
          "at most " + std::to_string(most)};
}

void pack_matrix(Lane& lane, const Tensor& host, const HostBytes& from, const Tensor& packed) {
  const auto row = static_cast<size_t>(row_bytes(host.dtype, host.cols()));
  const size_t rows_at_a_time = Lane::kPartBytes / row / kTileRows * kTileRows;
  if (rows_at_a_time == 0) throw too_long(row, Lane::kPartBytes / kTileRows);
  send(lane, from, row * static_cast<size_t>(host.rows()), rows_at_a_time * row,
       [&](Lane::Half& half, size_t at, size_t n) {
         copy(half.device, half.pinned.data(), n, lane.stream.get());
         pack_rows(host.dtype, half.device, static_cast<int64_t>(at / row), static_cast<int64_t>(n / row), packed,
                   lane.stream.get());
       });
}

/// Vectors arrive in any plain format and become f32.
void pack_vector(Lane& lane, const Tensor& host, void* dst) {
  std::vector<float> values(static_cast<size_t>(host.n_elements()));
  if (!decode_row(host.dtype, host.data, values.data(), host.n_elements()))
    throw Error(ErrorKind::bad_file, "weights", "cannot be decoded to f32", format_name(host.dtype));
  send(lane, {reinterpret_cast<const char*>(values.data())}, values.size() * sizeof(float), Lane::kPartBytes,
       [&](Lane::Half& half, size_t at, size_t n) {
         copy(static_cast<char*>(dst) + at, half.pinned.data(), n, lane.stream.get());
       });
}

DeviceInfo usable_device(int index) {
  const std::string reason = unusable_reason(index);
  if (!reason.empty()) throw Error(ErrorKind::run, "device", "cuda cannot be used: " + reason);
  return device_info(index);
}

}  // namespace

CudaBackend::CudaBackend(const BackendOptions& options)
    : device_(usable_device(options.device_index)),
      watch_(options.debug_sync, options.watchdog_seconds),
      mode_(parse_mode(options.mode)),
      fusion_(fused_stages(options)),
      act_(parse_act(options.act)),
      told_crossovers_(options.crossovers),
      live_bytes_(std::make_shared<std::atomic<int64_t>>(0)) {
  if (options.debug_sync) mode_ = Mode::eager;
  use_device();
  // What else runs on the device (loading, unpack_ahead.h) takes what the steps leave.
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "make a stream");
  check(cudaStreamCreateWithPriority(stream_.out(), cudaStreamNonBlocking, highest), "make a stream");
  staging_ = std::make_unique<Staging>(n_threads());
  check(cudaEventCreateWithFlags(staging_->zeroed.out(), cudaEventDisableTiming), "make an event");
}

CudaBackend::~CudaBackend() {
  // What is still under way reads memory that goes now. An error has been told, or is nobody's business any more.
  try {
    CudaBackend::wait();
  } catch (const Error&) {
  }
  if (*watch_.hung()) abandon();
}

void CudaBackend::abandon() {
  new std::map<uint64_t, Recorded>(std::move(recorded_));  // left behind on purpose, as all of this
  lt_.release();
  staging_.release();
}

std::string CudaBackend::describe() const {
  std::string text = cuda::describe(device_);
  if (!why_no_lt_.empty()) text += ", no cuBLASLt, prompts are slow: " + why_no_lt_;
  if (watch_.syncs())
    text += ", debug-sync";
  else if (mode_ != Mode::automatic)
    text += std::string(", mode ") + mode_name(mode_);
  text += fusion_.note();
  if (const std::string activations =
          describe_activations(needs_.matrix_formats, act_, lt_ != nullptr, needs_.deterministic);
      !activations.empty())
    text += ", " + activations;
  return text;
}

int CudaBackend::n_threads() const { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 16); }

void CudaBackend::use_device() const {
  watch_.require_alive();
  check(cudaSetDevice(device_.index), "choose the device");
}

Buffer CudaBackend::allocate(size_t bytes) {
  use_device();
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const std::string left = mebibytes(memory_left().value_or(0));
    throw Error(ErrorKind::does_not_fit, describe(), "out of device memory", mebibytes(bytes) + " wanted",
                left + " free");
  }
  check(status, "allocate");
  // From here on the buffer is its own master: it may be freed by any thread, after the backend. cudaFree finds the
  // device by the address, and waits for what still uses it.
  *live_bytes_ += static_cast<int64_t>(bytes);
  ++allocations_;
  Buffer buffer(data, [live = live_bytes_, hung = watch_.hung(), bytes](void* p) {
    if (!*hung) cudaFree(p);
    *live -= static_cast<int64_t>(bytes);
  });
  check(cudaMemsetAsync(data, 0, bytes, stream_.get()), "clear memory");
  check(cudaEventRecord(staging_->zeroed.get(), stream_.get()), "clear memory");
  return buffer;
}

char* CudaBackend::scratch_block(size_t bytes) {
  scratch_.push_back(allocate(bytes));
  return static_cast<char*>(scratch_.back().get());
}

void CudaBackend::upload(void* dst, const void* src, size_t bytes) {
  forget_copies();  // the host may write where attention's result was
  use_device();
  if (bytes == 0) return;
  watch_.guarded([&] { counters_.syncs += staging_->ring.upload(dst, src, bytes, stream_.get()); });
}

void CudaBackend::download(void* dst, const void* src, size_t bytes) {
  use_device();
  for (size_t at = 0; at < bytes; at += Staging::kDownloadBytes) {
    const size_t n = std::min(Staging::kDownloadBytes, bytes - at);
    watch_.guarded([&] {
      check(cudaMemcpyAsync(staging_->downloads.data(), static_cast<const char*>(src) + at, n, cudaMemcpyDeviceToHost,
                            stream_.get()),
            "download");
    });
    watch_.wait(stream_.get());
    ++counters_.syncs;
    std::memcpy(static_cast<char*>(dst) + at, staging_->downloads.data(), n);
  }
}

void CudaBackend::wait() {
  use_device();
  watch_.guarded([&] { staging_->lanes.wait(); });
  watch_.wait(stream_.get());
  ++counters_.syncs;
}

std::optional<size_t> CudaBackend::memory_left() const {
  use_device();
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "ask for free memory");
  return free;
}

size_t CudaBackend::packed_bytes(const Tensor& host, WeightRole role) const { return cuda::packed_bytes(host, role); }

Tensor CudaBackend::pack(const Tensor& host, WeightRole role, void* dst) const {
  return pack_from(host, role, dst, nullptr);
}
Tensor CudaBackend::pack_made(const Tensor& host, WeightRole role, void* dst, const MakeRows& make) const {
  if (role == WeightRole::vector) return Backend::pack_made(host, role, dst, make);
  return pack_from(host, role, dst, &make);
}

bool CudaBackend::packs_columns(const Tensor& host, const ColumnCodes& columns) const {
  constexpr int64_t kMostGroups = 65535;  // of a grid
  return packed_layout(host.dtype) == kTiles && columns.cols / kGroup <= kMostGroups &&
         column_part(columns, 0, Lane::kPartBytes).n_groups > 0;
}

Tensor CudaBackend::pack_columns(const Tensor& host, WeightRole role, void* dst, const ColumnCodes& columns) const {
  use_device();
  const LanePool::Lease lane = staging_->lanes.take();
  begin_pack(*lane);
  Tensor packed = host;
  packed.data = dst;
  packed.dtype = held_as(host.dtype, role, act_);
  packed.layout = packed_layout(host.dtype);
  for (int64_t group = 0; group < columns.cols / kGroup;) {
    const ColumnPart part = column_part(columns, group, Lane::kPartBytes);
    send_part(
        *lane, [&](char* to) { copy_part(columns, part, reinterpret_cast<std::byte*>(to)); },
        [&](Lane::Half& half) {
          copy(half.device, half.pinned.data(), static_cast<size_t>(part.bytes()), lane->stream.get());
          cuda::pack_columns(half.device, part, columns.order, packed, lane->stream.get());
        });
    group += part.n_groups;
  }
  end_pack(*lane);
  return packed;
}

void CudaBackend::begin_pack(Lane& lane) const {
  check(cudaStreamWaitEvent(lane.stream.get(), staging_->zeroed.get(), 0), "load weights");
}
/// Whoever multiplies with it next waits for it; the host does not.
void CudaBackend::end_pack(Lane& lane) const {
  check(cudaEventRecord(lane.done.get(), lane.stream.get()), "load weights");
  check(cudaStreamWaitEvent(stream_.get(), lane.done.get(), 0), "load weights");
  ++packs_;
}

/// make: null where the host has the numbers.
Tensor CudaBackend::pack_from(const Tensor& host, WeightRole role, void* dst, const MakeRows* make) const {
  use_device();
  const LanePool::Lease lane = staging_->lanes.take();
  begin_pack(*lane);
  Tensor packed = host;
  packed.data = dst;
  packed.dtype = held_as(host.dtype, role, act_);
  const auto row = static_cast<size_t>(row_bytes(host.dtype, host.cols()));
  const HostBytes from{host.as<char>(), make, 0, row};
  switch (role) {
    case WeightRole::matrix:
    case WeightRole::fine_matrix:
      packed.layout = packed_layout(host.dtype);
      if (host.n_dims == 3) {
        const int64_t rows = host.dims[1], from_bytes = tensor_bytes(host.dtype, rows, host.dims[2]),
                      to_bytes = packed_matrix_bytes(host.dtype, rows, host.dims[2]);
        for (int64_t i = 0; i < host.dims[0]; ++i) {
          const HostBytes of_matrix{make ? nullptr : host.as<char>() + i * from_bytes, make, i * rows, row};
          pack_matrix(*lane, matrix_of(host, i, 0), of_matrix, matrix_of(packed, i, to_bytes));
        }
      } else {
        pack_matrix(*lane, host, from, packed);
      }
      break;
    case WeightRole::embedding:
      if (make && row > Lane::kPartBytes) throw too_long(row, Lane::kPartBytes);
      send(*lane, from, cuda::packed_bytes(host, role), make ? Lane::kPartBytes / row * row : Lane::kPartBytes,
           [&](Lane::Half& half, size_t at, size_t n) {
             copy(static_cast<char*>(dst) + at, half.pinned.data(), n, lane->stream.get());
           });
      break;
    case WeightRole::vector:
      packed.dtype = DType::F32;
      pack_vector(*lane, host, dst);
      break;
  }
  end_pack(*lane);
  return packed;
}

BackendStats CudaBackend::stats() const {
  BackendStats stats = counters_;
  stats.allocations = allocations_;
  stats.bytes = *live_bytes_;
  return stats;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<WatchedBackend>(options);
}

}  // namespace infer::cuda

namespace infer {

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) { return cuda::make_cuda_backend(options); }

}  // namespace infer
