// Durations and shares as flags take them.
#include "tools/units.h"
#include "tests/catch.h"
#include "tools/arguments.h"

using namespace infer;
using namespace infer::tools;

TEST_CASE("durations have a unit") {
  CHECK(parse_duration("--duration", "500ms") == Approx(0.5));
  CHECK(parse_duration("--duration", "60s") == 60);
  CHECK(parse_duration("--duration", "1.5m") == 90);
  for (const char* bad : {"", "s", "90", "60 s", "-5s", "1e3s", "5sm", "0", "99999m", "1.2.3s", "nan"}) {
    INFO(bad);
    try {
      parse_duration("--duration", bad);
      FAIL("taken");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      CHECK(std::string(e.what()).rfind("--duration: ", 0) == 0);
    }
  }
}

TEST_CASE("shares are percent, with or without the sign") {
  CHECK(parse_percent("--tolerance", "3%") == Approx(0.03));
  CHECK(parse_percent("--tolerance", "2.5") == Approx(0.025));
  CHECK(parse_percent("--tolerance", "0") == 0);
  for (const char* bad : {"", "%", "100%", "-1", "3%%", "x"}) {
    INFO(bad);
    CHECK_THROWS_AS(parse_percent("--tolerance", bad), Error);
  }
}
