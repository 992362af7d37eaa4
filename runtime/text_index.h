// A map from byte strings to token ids: what every step of tokenizing asks. Open addressing, one cache line for a miss;
// the keys lie in one block of its own. The hash is seeded differently in every instance, so that no file can be built
// whose tokens all collide.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infer {

/// A seed that a model file cannot know.
uint64_t fresh_hash_seed();
uint64_t hash_bytes(std::string_view key, uint64_t seed);
/// For integer keys.
inline uint64_t hash_mix(uint64_t a, uint64_t b) {
  const auto wide = static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD6E8FEB86659FD93u);
  return static_cast<uint64_t>(wide) ^ static_cast<uint64_t>(wide >> 64);
}

class TextIndex {
 public:
  /// `n` keys of `n_bytes` together (below 2^32, which the caller has checked).
  TextIndex(size_t n, size_t n_bytes);
  /// False, and nothing changes, when the key is there already.
  bool insert(std::string_view key, int32_t id);
  /// -1 when absent.
  int32_t find(std::string_view key) const;
  size_t longest() const { return longest_; }  ///< length of the longest key in bytes

 private:
  struct Slot {
    uint64_t hash = 0;
    uint32_t offset = 0, length = 0;
    int32_t id = -1;  ///< -1: empty slot
  };
  size_t slot_of(std::string_view key, uint64_t hash) const;

  uint64_t seed_;
  std::vector<Slot> slots_;  ///< a power of two, at most half full
  std::string keys_;
  size_t longest_ = 0;
};

}  // namespace infer
