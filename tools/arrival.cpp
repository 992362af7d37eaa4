// Processes of arrival; see arrival.h.
#include "tools/arrival.h"

#include <cmath>
#include <limits>

#include "tools/arguments.h"
#include "tools/units.h"

namespace infer::tools {

Arrival parse_arrival(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon), rest = colon == text.npos ? "" : text.substr(colon + 1);
  Arrival a;
  a.text = text;
  if (kind == "poisson" || kind == "fixed") {
    a.kind = kind == "fixed" ? Arrival::Kind::fixed : Arrival::Kind::poisson;
    a.per_second = parse_rate("--arrival", rest);
  } else if (kind == "all") {
    a.kind = Arrival::Kind::all;
    a.n = parse_integer("--arrival", rest, 1, 1 << 20);
  } else {
    throw Error(ErrorKind::usage, "--arrival", "unknown process", "'" + escaped(text) + "'",
                "poisson:4/s, fixed:4/s, all:32");
  }
  return a;
}

void ArrivalTimes::advance() {
  ++n_;
  switch (arrival_.kind) {
    case Arrival::Kind::all:
      next_ = n_ <= arrival_.n ? 0 : std::numeric_limits<double>::infinity();
      break;
    case Arrival::Kind::fixed:
      next_ = static_cast<double>(n_ - 1) / arrival_.per_second;
      break;
    case Arrival::Kind::poisson: {
      // By hand: what std::exponential_distribution makes of the same bits differs between libraries.
      const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;  // [0, 1)
      next_ += -std::log1p(-uniform) / arrival_.per_second;
    }
  }
}

}  // namespace infer::tools
