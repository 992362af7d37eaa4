// Linear probing over a table that is at most half full. The seed keeps probe lengths short whatever the keys are.
#include "runtime/text_index.h"

#include <bit>
#include <chrono>
#include <cstring>
#include <random>

namespace infer {

uint64_t fresh_hash_seed() {
  const auto now = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  try {
    std::random_device device;
    return hash_mix(uint64_t{device()} << 32 | device(), now);
  } catch (const std::exception&) {  // no entropy source: the clock alone still differs from run to run
    return hash_mix(now, 0x5851F42D4C957F2Du);
  }
}

uint64_t hash_bytes(std::string_view key, uint64_t seed) {
  uint64_t h = seed ^ key.size();
  const char* p = key.data();
  size_t n = key.size();
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word = 0;
    std::memcpy(&word, p, 8);
    h = hash_mix(h ^ word, seed);
  }
  uint64_t tail = 0;
  for (size_t i = 0; i < n; ++i) tail |= uint64_t{static_cast<uint8_t>(p[i])} << (8 * i);
  return hash_mix(h ^ tail, seed);
}

TextIndex::TextIndex(size_t n, size_t n_bytes) : seed_(fresh_hash_seed()), slots_(std::bit_ceil(2 * n + 2)) {
  keys_.reserve(n_bytes);
}

size_t TextIndex::slot_of(std::string_view key, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (; slots_[at].id >= 0; at = (at + 1) & mask) {
    const Slot& slot = slots_[at];
    if (slot.hash == hash && slot.length == key.size() &&
        std::memcmp(keys_.data() + slot.offset, key.data(), key.size()) == 0) {
      break;
    }
  }
  return at;
}

bool TextIndex::insert(std::string_view key, int32_t id) {
  const uint64_t hash = hash_bytes(key, seed_);
  Slot& slot = slots_[slot_of(key, hash)];
  if (slot.id >= 0) return false;
  slot = {hash, static_cast<uint32_t>(keys_.size()), static_cast<uint32_t>(key.size()), id};
  keys_ += key;
  longest_ = std::max(longest_, key.size());
  return true;
}

int32_t TextIndex::find(std::string_view key) const {
  if (key.size() > longest_) return -1;
  return slots_[slot_of(key, hash_bytes(key, seed_))].id;
}

}  // namespace infer
