// Doubling and bisection; see sla.h.
#include "tools/sla.h"

#include <algorithm>

namespace infer::tools {

SlaAnswer search_most(int64_t limit, const std::function<bool(int64_t n)>& keeps,
                      const std::function<bool()>& stopped) {
  SlaAnswer a;
  const auto probe = [&](int64_t n) { (keeps(n) ? a.most : a.first_miss) = n; };
  for (int64_t n = 1; a.first_miss == 0 && a.most < limit && !stopped(); n = std::min(2 * n, limit)) probe(n);
  while (a.first_miss - a.most > std::max<int64_t>(1, a.most / 16) && !stopped())
    probe(a.most + (a.first_miss - a.most) / 2);
  return a;
}

}  // namespace infer::tools
