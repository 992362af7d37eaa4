// Pinned memory of staging.h.
#include "kernels/cuda/staging.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

#include "kernels/cuda/watch.h"

namespace infer::cuda {
namespace {

Event make_event() {
  Event event;
  check(cudaEventCreateWithFlags(event.out(), cudaEventDisableTiming), "make an event");
  return event;
}

std::vector<PinnedPart> parts_of(const Pinned& memory, size_t n, size_t bytes) {
  std::vector<PinnedPart> parts;
  for (size_t i = 0; i < n; ++i) parts.emplace_back(memory.data() + i * bytes);
  return parts;
}

/// Has the pages of much memory made by several threads, and not by the driver, one after the other.
void touch(char* data, size_t bytes) {
  constexpr size_t kShare = size_t{16} << 20, kSmallPage = 4096;
  std::vector<std::jthread> threads;
  for (size_t at = 0; at < bytes; at += kShare) {
    const auto share = [=] {
      for (size_t i = at; i < std::min(bytes, at + kShare); i += kSmallPage) data[i] = 0;
    };
    try {
      threads.emplace_back(share);
    } catch (const std::system_error&) {  // no more threads to be had
      share();
    }
  }
}

}  // namespace

Pinned::Pinned(size_t bytes) {
  if (map_large_pages(bytes)) return;
  void* data = nullptr;
  check(cudaHostAlloc(&data, bytes, cudaHostAllocPortable), "pinned memory");
  data_ = static_cast<char*>(data);
}

/// False where there would be less than two pages, or the system or the driver will not.
bool Pinned::map_large_pages(size_t bytes) {
  constexpr size_t kPage = size_t{2} << 20;
  if (bytes < 2 * kPage) return false;
  const size_t room = bytes + kPage;
  void* const at = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return false;
  char* const data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(at) + kPage - 1) / kPage * kPage);
#if defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  touch(data, bytes);
  if (cudaHostRegister(data, bytes, cudaHostRegisterPortable) != cudaSuccess) {
    cudaGetLastError();
    munmap(at, room);
    return false;
  }
  data_ = data;
  mapped_ = {static_cast<char*>(at), room};
  return true;
}

Pinned::~Pinned() {
  if (!data_) return;
  if (mapped_.empty()) {
    cudaFreeHost(data_);
    return;
  }
  // Memory that the driver did not let go of may still be written to by a device.
  if (cudaHostUnregister(data_) == cudaSuccess) munmap(mapped_.data(), mapped_.size());
}

DeviceBlock::DeviceBlock(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(ErrorKind::does_not_fit, "cuda", "no device memory is left for loading");
  }
  check(status, "device memory for loading");
  data_ = static_cast<char*>(data);
}

DeviceBlock::~DeviceBlock() {
  if (data_) cudaFree(data_);
}

PinnedPart::PinnedPart(char* data) : data_(data), done_(make_event()) {}

bool PinnedPart::reclaim() {
  if (!std::exchange(in_use_, false)) return false;
  if (cudaEventQuery(done_.get()) == cudaSuccess) return false;
  cudaGetLastError();  // "not ready" is an answer and no error
  await(done_.get(), "upload");
  return true;
}

void PinnedPart::in_use_until(cudaStream_t stream) {
  check(cudaEventRecord(done_.get(), stream), "upload");
  in_use_ = true;
}

UploadRing::UploadRing() : parts_(parts_of(memory_, kParts, kPartBytes)) {}

int UploadRing::small(void* dst, const void* src, size_t bytes, cudaStream_t stream) {
  int waits = 0;
  if (used_ + bytes > kPartBytes) {
    parts_[part_].in_use_until(stream);
    part_ = (part_ + 1) % parts_.size();
    used_ = 0;
    waits = parts_[part_].reclaim();
  }
  char* const at = parts_[part_].data() + used_;
  std::memcpy(at, src, bytes);
  check(cudaMemcpyAsync(dst, at, bytes, cudaMemcpyHostToDevice, stream), "upload");
  used_ += (bytes + 63) / 64 * 64;
  return waits;
}

int UploadRing::upload(void* dst, const void* src, size_t bytes, cudaStream_t stream) {
  if (bytes <= kSmall) return small(dst, src, bytes, stream);
  if (halves_.empty()) {
    large_ = Pinned(2 * kHalfBytes);
    halves_ = parts_of(large_, 2, kHalfBytes);
  }
  int waits = 0;
  for (size_t at = 0; at < bytes; at += kHalfBytes) {
    PinnedPart& half = halves_[half_];
    half_ ^= 1;
    const size_t n = std::min(kHalfBytes, bytes - at);
    waits += half.reclaim();
    std::memcpy(half.data(), static_cast<const char*>(src) + at, n);
    check(cudaMemcpyAsync(static_cast<char*>(dst) + at, half.data(), n, cudaMemcpyHostToDevice, stream), "upload");
    half.in_use_until(stream);
  }
  return waits;
}

Lane::Lane(char* pinned, char* device)
    : done(make_event()),
      halves{Half{PinnedPart(pinned), device}, Half{PinnedPart(pinned + kPartBytes), device + kPartBytes}} {
  check(cudaStreamCreateWithFlags(stream.out(), cudaStreamNonBlocking), "make a stream");
}

LanePool::Lease LanePool::take() {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) make_lanes();
  Lane* const lane = idle_.back();
  idle_.pop_back();
  return {*this, lane};
}

void LanePool::make_lanes() {
  size_t n = n_at_once_;
  while (true) {
    try {
      blocks_.emplace_back(n);
      break;
    } catch (const Error&) {  // a device that is nearly full
      if (n == 1) throw;
      n /= 2;
    }
  }
  idle_.reserve(lanes_.size() + n);  // so that giving back cannot fail
  for (size_t i = 0; i < n; ++i) {
    lanes_.push_back(std::make_unique<Lane>(blocks_.back().pinned.data() + i * Lane::kBytes,
                                            blocks_.back().device.data() + i * Lane::kBytes));
    idle_.push_back(lanes_.back().get());
  }
}

void LanePool::give_back(Lane* lane) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(lane);
}

bool LanePool::wait() {
  const std::lock_guard lock(mutex_);
  for (const auto& lane : lanes_) await(lane->stream.get(), "load");
  return !lanes_.empty();
}

}  // namespace infer::cuda
