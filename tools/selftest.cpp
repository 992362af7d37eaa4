// `infer selftest`: every op and shape that a model uses on this device against the reference, as a table.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

// JSON has no infinity.
ordered_json number(double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json("inf"); }

ordered_json to_json(const SelfTest& test) {
  ordered_json rows = ordered_json::array();
  for (const SelfTestRow& r : test.rows)
    rows.push_back({{"op", r.op},
                    {"format", r.format},
                    {"shape", r.shape},
                    {"n_tokens", r.n_tokens},
                    {"max_error", number(r.max_error)},
                    {"rms_error", number(r.rms_error)},
                    {"max_limit", r.max_limit},
                    {"rms_limit", r.rms_limit},
                    {"passed", r.passed}});
  return {{"device", test.device},
          {"passed", test.passed},
          {"seconds", test.seconds},
          {"notes", test.notes},
          {"rows", rows}};
}

void print(const SelfTest& test) {
  size_t op = 2, format = 6, shape = 5;
  for (const SelfTestRow& r : test.rows) {
    op = std::max(op, r.op.size());
    format = std::max(format, r.format.size());
    shape = std::max(shape, r.shape.size());
  }
  fmt::print("{}, against ref; errors relative to the root mean square\n\n", test.device);
  fmt::print("{:{}}  {:{}}  {:{}}  {:>6}  {:>9}  {:>9}  {:>9}  {:>9}\n", "op", op, "format", format, "shape", shape,
             "tokens", "max", "limit", "rms", "limit");
  for (const SelfTestRow& r : test.rows)
    fmt::print("{:{}}  {:{}}  {:{}}  {:>6}  {:>9.2e}  {:>9.2e}  {:>9.2e}  {:>9.2e}  {}\n", r.op, op, r.format, format,
               r.shape, shape, r.n_tokens, r.max_error, r.max_limit, r.rms_error, r.rms_limit,
               r.passed ? "pass" : "FAIL");
  fmt::print("\n");
  for (const std::string& text : test.notes) fmt::print("note: {}\n", text);
  const auto passed = std::count_if(test.rows.begin(), test.rows.end(), [](const SelfTestRow& r) { return r.passed; });
  fmt::print("{} of {} passed, {:.1f} s\n", passed, test.rows.size(), test.seconds);
}

}  // namespace

int selftest_command(const Args& args) {
  ModelFlags model;
  std::string k_type, v_type;
  bool json = false;
  Arguments a(
      "infer selftest -m MODEL.gguf [--device cuda] [--json]",
      "Runs every op and shape that the model uses, one layer of each kind, with its weights and random input on\n"
      "the device and on the slow reference, and whole steps in every mode. Exit status 5: something is off.\n");
  a.positional("MODEL", [&](const std::string& t) { model.path = t; });
  model.add_to(a);
  a.text({"-ctk", "--cache-type-k"}, "TYPE", "KV cache of keys: f32, f16, bf16, q8_0, q4_0 (default f16)", &k_type);
  a.text({"-ctv", "--cache-type-v"}, "TYPE", "KV cache of values (default f16)", &v_type);
  a.flag({"--json"}, "machine-readable", &json);
  if (!parse_or_help(a, args)) return 0;
  if (model.path.empty()) throw Error(ErrorKind::usage, "-m", "no model given; see infer selftest --help");
  model.load.n_threads = model.n_threads > 0 ? static_cast<int>(model.n_threads) : 0;
  const SelfTest test =
      self_test(model.path, model.load, k_type, v_type, [](const std::string& text) { note("selftest: {}\n", text); });
  if (json)
    fmt::print("{}\n", to_json(test).dump(1, ' ', false, ordered_json::error_handler_t::replace));
  else
    print(test);
  if (!test.passed) throw Error(ErrorKind::gate, "selftest", "not everything passed");
  return 0;
}

}  // namespace infer::tools
