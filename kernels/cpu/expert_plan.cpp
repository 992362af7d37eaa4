// A counting sort, and the sizes of chunks.
#include "kernels/cpu/expert_plan.h"

#include <algorithm>

#include "infer/error.h"

namespace infer::cpu {

void ExpertPlan::sort(const Tensor& ids, int64_t n_experts) {
  const int64_t n_rows = ids.n_elements();
  const int32_t* id = ids.as<int32_t>();
  next_.assign(static_cast<size_t>(n_experts), 0);
  for (int64_t i = 0; i < n_rows; ++i) {
    if (id[i] < 0 || id[i] >= n_experts) {
      throw Error(ErrorKind::run, "experts", "id out of range", std::to_string(id[i]),
                  "0 to " + std::to_string(n_experts - 1));
    }
    ++next_[static_cast<size_t>(id[i])];
  }
  groups_.clear();
  int64_t first = 0;
  for (int64_t e = 0; e < n_experts; ++e) {
    int64_t& next = next_[static_cast<size_t>(e)];
    if (next > 0) groups_.push_back({e, first, next});
    first += next;
    next = first - next;
  }
  order_.resize(static_cast<size_t>(n_rows)), places_.resize(static_cast<size_t>(n_rows));
  for (int64_t i = 0; i < n_rows; ++i) {
    const int64_t place = next_[static_cast<size_t>(id[i])]++;
    order_[static_cast<size_t>(place)] = static_cast<int32_t>(i);
    places_[static_cast<size_t>(i)] = static_cast<int32_t>(place);
  }
}

void ExpertPlan::cut(int64_t begin, int64_t end, const Cut& cut, std::vector<Chunk>& chunks) {
  constexpr int64_t kLeastBytes = 8 << 10;  // more than a claim costs
  constexpr int64_t kPanelTiles = 4;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t size = kPanelTiles;
  if (cut.few_rows) {
    const int64_t total = (end - begin) * cut.tiles, share = cut.n_threads == 1 ? total : total / (8 * cut.n_threads);
    size = std::max(share, ceil_div(kLeastBytes, cut.tile_bytes));
  }
  size = std::min(ceil_div(size, cut.multiple) * cut.multiple, cut.tiles);
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t tile = 0; tile < cut.tiles; tile += size) {
      chunks.push_back({group, tile, std::min(tile + size, cut.tiles)});
    }
  }
}

}  // namespace infer::cpu
