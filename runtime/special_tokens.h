// Finds the tokens that are recognised in text before anything else: control tokens, user-defined tokens and the
// unknown token. Vocabularies hold up to thousands of them, so candidates are narrowed byte by byte in sorted order.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infer {

class SpecialTokens {
 public:
  struct Hit {
    size_t begin = 0, end = 0;
    int32_t id = -1;  ///< -1: none
  };

  /// Call for every token, then finish().
  void add(std::string_view text, int32_t id, bool user_defined);
  void finish();
  /// The longest token that begins at text[at]; control tokens only when they end by `control_end`.
  Hit match(std::string_view text, size_t at, size_t control_end) const;
  /// Whether some token begins with this byte.
  bool may_begin(char byte) const {
    return first_[static_cast<uint8_t>(byte)].begin != first_[static_cast<uint8_t>(byte)].end;
  }

 private:
  struct Entry {
    std::string text;
    int32_t id;
    bool user_defined;
  };
  struct Range {
    uint32_t begin = 0, end = 0;
  };
  std::vector<Entry> entries_;  ///< sorted by text
  std::array<Range, 256> first_{};
};

}  // namespace infer
