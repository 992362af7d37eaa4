// Metadata of a folder in the form that GGUF files have. A key that converters do not write is left out where the
// architecture's reader arrives at the same without it, and kept for this program's sake where not.
#include <cmath>
#include <cstdio>

#include "models/arch.h"
#include "models/rope_config.h"
#include "runtime/convert.h"

namespace infer {
namespace {

/// What reads a flag for each layer and more; keys that are left out when it makes no difference.
constexpr const char* kImplied[] = {"attention.sliding_window_pattern", "rope.layer_pattern", "expert_weights_norm"};

bool same_layers(const Config& a, const Config& b) {
  for (size_t i = 0; i < a.layers.size(); ++i)
    if (a.layers[i].window != b.layers[i].window || a.layers[i].rope != b.layers[i].rope) return false;
  return a.experts.sum_to_one == b.experts.sum_to_one;
}

/// n where the flags say "all but every n-th"; 0 where no n does.
int64_t period_of(const std::vector<bool>& flags) {
  for (size_t n = 2; n <= flags.size(); ++n) {
    bool fits = true;
    for (size_t i = 0; i < flags.size() && fits; ++i) fits = flags[i] == ((i + 1) % n != 0);
    if (fits) return static_cast<int64_t>(n);
  }
  return 0;
}

void drop_implied(Checkpoint& checkpoint, const std::string& arch) {
  const Config before = read_config(checkpoint);
  for (const char* name : kImplied) {
    const auto found = checkpoint.metadata.find(arch + "." + name);
    if (found == checkpoint.metadata.end()) continue;
    const auto [key, value] = *found;
    checkpoint.metadata.erase(found);
    if (same_layers(before, read_config(checkpoint))) continue;
    const auto* flags = std::get_if<std::vector<bool>>(&value.data);
    const int64_t period = flags ? period_of(*flags) : 0;
    checkpoint.metadata.emplace(key, period > 0 ? Value{period, "u32"} : value);
  }
}

/// No name in GGUF files means this scaling, and programs give up on names that they do not know: it is said in keys
/// that only this program reads.
void rename_dynamic(Checkpoint& checkpoint, const std::string& arch, std::vector<std::string>& notes) {
  const std::string prefix = arch + ".rope.scaling.";
  if (checkpoint.find_string(prefix + "type").value_or("") != "dynamic") return;
  for (const auto& [theirs, ours] : {std::pair("type", kRopeScalingKey),
                                     {"factor", kRopeFactorKey},
                                     {"original_context_length", kRopeOriginalKey}}) {
    auto node = checkpoint.metadata.extract(prefix + theirs);
    if (node.empty()) continue;
    node.key() = ours;
    checkpoint.metadata.insert(std::move(node));
  }
  notes.push_back(
      "rope scaling \"dynamic\": other programs than this one compute the plain rope, the same up to the original "
      "context");
}

void narrow(Value& value, bool is_signed) {
  if (value.type == "i64") value.type = is_signed ? "i32" : "u32";
  if (value.type == "f64") value.type = "f32";
}

void narrow_types(Checkpoint& checkpoint) {
  for (auto& [key, value] : checkpoint.metadata) {
    const bool top_k = key == "general.sampling.top_k";
    if (const auto* number = std::get_if<double>(&value.data); top_k && number)
      value = {static_cast<int64_t>(*number), "i64"};
    narrow(value, top_k);
  }
}

/// "1.2B", with two digits at least.
std::string rounded(double n) {
  const double scale = n > 1e12 ? 1e12 : n > 1e9 ? 1e9 : n > 1e6 ? 1e6 : 1e3;
  const char* suffix = n > 1e12 ? "T" : n > 1e9 ? "B" : n > 1e6 ? "M" : "K";
  const double scaled = n / scale;
  const int whole = std::nearbyint(scaled) == 0 ? 0 : static_cast<int>(std::log10(std::nearbyint(scaled))) + 1;
  char text[32];
  std::snprintf(text, sizeof text, "%.*f%s", std::max(2 - whole, 0), scaled, suffix);
  return text;
}

/// The number of weights, or of experts times the weights that meet a token with one of them.
std::string size_label(const Checkpoint& checkpoint) {
  double shared = 0, expert = 0;
  int64_t n_experts = 0;
  for (const HostTensor& tensor : checkpoint.tensors) {
    const auto n = static_cast<double>(tensor.n_elements());
    if (!tensor.name.ends_with("_exps.weight")) {
      shared += n;
    } else {
      n_experts = tensor.dims[0];
      expert += n / static_cast<double>(n_experts);
    }
  }
  return (n_experts > 0 ? std::to_string(n_experts) + "x" : "") + rounded(shared + expert);
}

}  // namespace

void convert_metadata(Checkpoint& checkpoint, std::vector<std::string>& notes) {
  const std::string arch = checkpoint.get_string("general.architecture");
  rename_dynamic(checkpoint, arch, notes);
  drop_implied(checkpoint, arch);
  narrow_types(checkpoint);
  checkpoint.metadata.insert_or_assign("general.type", Value{std::string("model"), "string"});
  checkpoint.metadata.insert_or_assign("general.size_label", Value{size_label(checkpoint), "string"});
}

}  // namespace infer
