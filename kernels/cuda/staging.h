// The pinned memory through which bytes go to a device and back: what the caller hands over is copied there first, so
// that the copy over the bus runs on while the caller goes on. Knows streams and bytes, no tensors. Not thread-safe but
// for LanePool, which gives each loading thread a lane of its own.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/cuda/device.h"

namespace infer::cuda {

/// Host memory that the device can read and write while the host does something else. Much of it is made of large pages
/// where the system has them: they are zeroed and pinned ten times as fast (128 MB in 7 ms instead of 68).
class Pinned {
 public:
  Pinned() = default;
  explicit Pinned(size_t bytes);
  ~Pinned();
  Pinned(Pinned&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), mapped_(std::exchange(other.mapped_, {})) {}
  Pinned& operator=(Pinned&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  char* data() const { return data_; }

 private:
  bool map_large_pages(size_t bytes);

  char* data_ = nullptr;
  std::span<char> mapped_;  ///< what was mapped and registered; empty: the driver's own
};

/// Memory of the device for the time of loading.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  explicit DeviceBlock(size_t bytes);
  ~DeviceBlock();
  DeviceBlock(DeviceBlock&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceBlock& operator=(DeviceBlock&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

/// A part of pinned memory and the copies out of it that were asked for last.
class PinnedPart {
 public:
  explicit PinnedPart(char* data);
  char* data() const { return data_; }
  /// Returns when the memory may be written again; true if it had to wait.
  bool reclaim();
  /// What `stream` was asked for so far reads this memory.
  void in_use_until(cudaStream_t stream);

 private:
  char* data_;
  Event done_;
  bool in_use_ = false;
};

/// Uploads of a step: small ones packed one after another into four parts that take turns, large ones through two
/// halves.
class UploadRing {
 public:
  static constexpr size_t kSmall = size_t{64} << 10, kPartBytes = size_t{256} << 10, kHalfBytes = size_t{8} << 20;
  static constexpr size_t kParts = 4;

  UploadRing();
  /// Enqueues the copy; `src` may be reused at once. Returns how often the host had to wait for the device.
  int upload(void* dst, const void* src, size_t bytes, cudaStream_t stream);

 private:
  int small(void* dst, const void* src, size_t bytes, cudaStream_t stream);

  Pinned memory_{kParts * kPartBytes}, large_;
  std::vector<PinnedPart> parts_, halves_;  ///< the halves appear with the first large upload
  size_t part_ = 0, used_ = 0, half_ = 0;
};

/// What one thread loads with: its own stream, and two parts of pinned memory with room for as much on the device, so
/// that the host fills one while the other travels and is packed.
struct Lane {
  static constexpr size_t kPartBytes = size_t{4} << 20, kBytes = 2 * kPartBytes;
  /// Both have kBytes.
  Lane(char* pinned, char* device);
  struct Half {
    PinnedPart pinned;
    char* device;
  };
  Stream stream;
  Event done;  ///< of what was asked for last
  std::array<Half, 2> halves;
  size_t next = 0;  ///< half to fill
};

class LanePool {
 public:
  class Lease {
   public:
    Lease(LanePool& pool, Lane* lane) : pool_(pool), lane_(lane) {}
    ~Lease() { pool_.give_back(lane_); }
    Lease(const Lease&) = delete;
    Lane* operator->() const { return lane_; }
    Lane& operator*() const { return *lane_; }

   private:
    LanePool& pool_;
    Lane* lane_;
  };
  /// Lanes are made for so many threads at once: what each would do for itself they would do one after the other in the
  /// driver.
  explicit LanePool(int n_threads) : n_at_once_(static_cast<size_t>(n_threads)) {}
  /// An idle lane or a new one.
  Lease take();
  /// Returns when all lanes have done what they were asked for; false if there are none.
  bool wait();

 private:
  struct Block {
    explicit Block(size_t n_lanes) : device(n_lanes * Lane::kBytes), pinned(n_lanes * Lane::kBytes) {}
    DeviceBlock device;
    Pinned pinned;
  };

  void give_back(Lane* lane);
  void make_lanes();

  const size_t n_at_once_;
  std::mutex mutex_;
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Lane*> idle_;
};

}  // namespace infer::cuda
