// How the cpu shares out the work of a step on experts: rows sorted by expert, so that each expert's weights are read
// once for all of its tokens, and tiles of the experts that have any rows cut into chunks. Integers only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace infer::cpu {

class ExpertPlan {
 public:
  /// The rows of one expert: [first, first + count) in sorted order.
  struct Group {
    int64_t expert, first, count;
  };
  /// Some tiles of a group's matrix, for all of its rows.
  struct Chunk {
    int64_t group, tile_begin, tile_end;
  };

  /// Row t * n_active + s belongs to ids[t, s]. Throws Error(run) for an id outside [0, n_experts).
  void sort(const Tensor& ids, int64_t n_experts);

  const std::vector<Group>& groups() const { return groups_; }  ///< of experts with rows, by expert
  /// [n_rows]: the row that stands at each place of the sorted order; and the place of each row.
  const std::vector<int32_t>& order() const { return order_; }
  const std::vector<int32_t>& places() const { return places_; }

  struct Cut {
    int64_t tiles;       ///< of one matrix
    int64_t tile_bytes;  ///< packed
    int64_t multiple;    ///< chunks are of so many tiles, or end with the matrix
    int n_threads;
    bool few_rows;  ///< the weights are a stream; else rows are many, and kernels unpack four tiles at a time
  };
  /// Appends the chunks of the groups [begin, end) of equal shape; a number past the last group may stand for any other
  /// rows.
  static void cut(int64_t begin, int64_t end, const Cut& cut, std::vector<Chunk>& chunks);

  std::vector<Chunk> up, down;  ///< for the caller to fill: their memory is kept from step to step

 private:
  std::vector<Group> groups_;
  std::vector<int32_t> order_, places_;
  std::vector<int64_t> next_;  ///< [n_experts]: rows of each, then where its next row goes
};

}  // namespace infer::cpu
