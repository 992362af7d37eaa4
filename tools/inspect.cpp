// `infer inspect`: what a file holds, what it needs, and whether it will run here; without loading weights.
#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

// Numbers and truth values as such, strings without their quotes, lists as text: they are cut to a few elements.
ordered_json metadata_value(const std::string& text) {
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') return text.substr(1, text.size() - 2);
  const ordered_json value = ordered_json::parse(text, nullptr, false);
  return value.is_number() || value.is_boolean() ? value : ordered_json(text);
}

ordered_json to_json(const Inspection& i) {
  const ModelInfo& m = i.info;
  ordered_json tensors = ordered_json::array(), metadata = ordered_json::object();
  for (const TensorInfo& t : m.tensors)
    tensors.push_back({{"name", t.name}, {"type", t.type}, {"shape", t.dims}, {"bytes", t.bytes}});
  for (const auto& [key, text] : m.metadata) metadata[key] = metadata_value(text);
  return {{"path", m.path},
          {"format", m.format},
          {"architecture", m.arch},
          {"name", m.name},
          {"file_type", m.file_type},
          {"file_bytes", m.file_bytes},
          {"n_params", m.n_params},
          {"n_layers", m.n_layers},
          {"dim", m.dim},
          {"n_heads", m.n_heads},
          {"n_kv_heads", m.n_kv_heads},
          {"head_dim", m.head_dim},
          {"ffn_dim", m.ffn_dim},
          {"n_experts", m.n_experts},
          {"n_active", m.n_active},
          {"n_active_params", m.n_active_params},
          {"vocab", m.vocab},
          {"context_length", m.context_length},
          {"has_tokenizer", m.has_tokenizer},
          {"has_chat_template", m.has_chat_template},
          {"runs", i.refusal.empty()},
          {"refusal", i.refusal},
          {"plan",
           {{"device", m.device},
            {"n_ctx", i.n_ctx},
            {"device_note", m.device_note},
            {"mapped_bytes", m.mapped_bytes},
            {"packed_bytes", i.packed_bytes},
            {"kv_bytes_per_token", i.kv_bytes_per_token},
            {"scratch_bytes", i.scratch_bytes},
            {"peak_bytes", i.peak_bytes}}},
          {"warnings", m.warnings},
          {"metadata", metadata},
          {"tensors", tensors}};
}

void print(const Inspection& i, bool all_tensors) {
  const ModelInfo& m = i.info;
  auto bytes = [](size_t n) { return human_bytes(static_cast<double>(n)); };
  fmt::print("{}\n  {}, {}, {} tensors\n\nmetadata:\n", escaped(m.path, 4096), m.format, bytes(m.file_bytes),
             m.tensors.size());
  for (const auto& [key, text] : m.metadata) fmt::print("  {:44} {}\n", escaped(key), text);
  fmt::print("\ntensors:\n");
  const size_t shown = all_tensors ? m.tensors.size() : std::min<size_t>(m.tensors.size(), 14);
  for (size_t k = 0; k < shown; ++k) {
    const TensorInfo& t = m.tensors[k];
    fmt::print("  {:36} {:8} {:>20} {:>10}\n", escaped(t.name), t.type, fmt::format("[{}]", listed(t.dims)),
               bytes(t.bytes));
  }
  if (shown < m.tensors.size()) fmt::print("  ... {} more (--all)\n", m.tensors.size() - shown);
  std::map<std::string, std::pair<size_t, size_t>> by_type;
  for (const TensorInfo& t : m.tensors) by_type[t.type].first++, by_type[t.type].second += t.bytes;
  fmt::print("\n  by type:");
  for (const auto& [type, n] : by_type) fmt::print("  {} x {} ({})", n.first, type, bytes(n.second));
  for (const std::string& w : m.warnings) fmt::print("\nwarning: {}", w);
  if (!m.device_note.empty()) fmt::print("\nnote: {}", m.device_note);
  if (!i.refusal.empty()) {
    fmt::print("\n\nwill not run here\n");
    return;
  }
  fmt::print("\n\nwill run on {}: {}, {} layers, width {}, {} heads of {} ({} for keys and values), vocabulary {}\n",
             m.device, escaped(m.arch), m.n_layers, m.dim, m.n_heads, m.head_dim, m.n_kv_heads, m.vocab);
  if (m.n_experts > 0) {
    fmt::print("  {} of {} experts at a time: {:.3g} of {:.3g} billion weights for a token\n", m.n_active, m.n_experts,
               static_cast<double>(m.n_active_params) / 1e9, static_cast<double>(m.n_params) / 1e9);
  }
  fmt::print("  tokenizer {}, chat template {}, trained context {}\n", m.has_tokenizer ? "yes" : "no",
             m.has_chat_template ? "yes" : "no", m.context_length);
  fmt::print(
      "memory at context {}: weights in the file {}, repacked {}, KV cache {} ({} a token), scratch {}; peak at most "
      "{}\n",
      i.n_ctx, bytes(m.mapped_bytes), bytes(i.packed_bytes), bytes(i.kv_bytes_per_token * static_cast<size_t>(i.n_ctx)),
      bytes(i.kv_bytes_per_token), bytes(i.scratch_bytes), bytes(i.peak_bytes));
}

}  // namespace

int inspect_command(const Args& args) {
  ModelFlags model_flags;
  bool json = false, all = false;
  int64_t n_ctx = 0;
  Arguments a("infer inspect MODEL [--json]", "Metadata, tensors, sizes, and whether the model will run here.\n");
  a.positional("MODEL", [&](const std::string& t) { model_flags.path = t; });
  model_flags.add_to(a);
  a.integer({"-c", "--ctx-size"}, "N", "context to plan memory for (default: the model's, or what fits)", &n_ctx, 0,
            1 << 24);
  a.flag({"--json"}, "machine-readable", &json);
  a.flag({"--all"}, "list all tensors", &all);
  if (!parse_or_help(a, args)) return 0;
  if (model_flags.path.empty()) throw Error(ErrorKind::usage, "no model given; see infer inspect --help");
  const Inspection inspection = Model::inspect(model_flags.path, n_ctx, model_flags.load);
  if (json)
    fmt::print("{}\n", to_json(inspection).dump(1, ' ', false, ordered_json::error_handler_t::replace));
  else
    print(inspection, all);
  // The file was readable, but a script that asks "can this run?" wants the answer in the status.
  if (!inspection.refusal.empty()) throw Error(ErrorKind::bad_file, inspection.refusal);
  return 0;
}

}  // namespace infer::tools
