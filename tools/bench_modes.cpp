// See bench_modes.h.
#include "tools/bench_modes.h"

#include "tools/compare.h"
#include "tools/units.h"

namespace infer::tools {

void declare(Arguments& a, BenchModes& m) {
  a.group("Over time, and against earlier runs");
  a.add({"--duration"}, "T",
        "repeat each test for this long (60s, 500ms, 2m), a line to an interval;\n"
        "                                   how long requests of --arrival come, or the search of --sla takes (60s)",
        [&m](const std::string& t) { m.duration = parse_duration("--duration", t); });
  a.flag({"--energy"}, "also joules per token, where counters can be read; '-' for less than 0.3 s of work", &m.energy);
  a.text({"--save"}, "FILE", "keep the results, as -o json prints them", &m.save);
  a.text({"--against"}, "FILE", "compare with kept results; status 5: a test is slower beyond tolerance and noise",
         &m.against);
  a.add({"--tolerance"}, "P%",
        "changes that do not count (default 3%). Medians are compared; their intervals come\n"
        "                                   from order statistics: all of 3 to 8 repetitions, the inner ones of more",
        [&m](const std::string& t) { m.tolerance = parse_percent("--tolerance", t); });
  a.flag({"--startup"}, "from exec to the first token, by phase, in processes of their own: cold and warm", &m.startup);
  a.flag({"--startup-marks"}, "", &m.startup_marks);
}

void check(const BenchModes& m, bool levels, bool tokenizer, int64_t repetitions, bool many) {
  const auto refuse = [](const char* flag, const std::string& why) { throw Error(ErrorKind::usage, flag, why); };
  if (m.any() && levels) refuse("--levels", "the table of levels has no --duration, --energy, --against and --startup");
  if (m.any() && tokenizer) refuse("--tokenizer", "encoding has no --duration, --energy, --against and --startup");
  if (many && (m.energy || !m.save.empty() || !m.against.empty() || m.startup || m.startup_marks))
    refuse("-npl, --arrival, --sla, --roofline, --ladder, --autotune",
           "these tables have no --energy, --save, --against and --startup");
  const bool starts = m.startup || m.startup_marks;
  if (starts && (m.duration > 0 || m.energy || !m.save.empty() || !m.against.empty()))
    refuse("--startup", "measures starts and nothing else: without --duration, --energy, --save, --against");
  if (m.duration > 0 && (!m.save.empty() || !m.against.empty()))
    refuse("--duration", "counts no repetitions, which --save and --against need");
  if (!m.against.empty() && repetitions < static_cast<int64_t>(kFewestSamples))
    throw Error(ErrorKind::usage, "--against", "too few repetitions to know their noise", std::to_string(repetitions),
                "-r " + std::to_string(kFewestSamples) + " or more");
}

}  // namespace infer::tools
