// See overrides.h.
#include "runtime/overrides.h"

#include <charconv>
#include <cmath>

namespace infer {
namespace {

[[noreturn]] void refuse_override(const MetadataOverride& o, const std::string& allowed) {
  throw Error(ErrorKind::usage, "--override-kv " + escaped(o.key), "invalid value",
              escaped(o.type) + ":" + escaped(o.value), allowed);
}

template <class T>
T parse_number(const MetadataOverride& o, const char* allowed) {
  T value{};
  const char* end = o.value.data() + o.value.size();
  const auto result = std::from_chars(o.value.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end) refuse_override(o, allowed);
  return value;
}

Value override_value(const MetadataOverride& o) {
  if (o.type == "int") return {parse_number<int64_t>(o, "an integer of 64 bits"), "i64"};
  if (o.type == "str") return {o.value, "string"};
  if (o.type == "float") {
    const auto value = parse_number<double>(o, "a finite float");
    if (!std::isfinite(value)) refuse_override(o, "a finite float");
    return {value, "f64"};
  }
  if (o.type == "bool" && (o.value == "true" || o.value == "false")) return {o.value == "true", "bool"};
  refuse_override(o, "int:N, float:X, bool:true, bool:false or str:TEXT");
}

}  // namespace

void apply_overrides(Checkpoint& checkpoint, const std::vector<MetadataOverride>& overrides) {
  for (const MetadataOverride& o : overrides) {
    if (o.key.empty()) refuse_override(o, "KEY=TYPE:VALUE");
    checkpoint.metadata.insert_or_assign(o.key, override_value(o));
  }
}

}  // namespace infer
