// ★ The one table of backends. A new backend is a folder and a row here; --device takes these names. It knows how to
// make them and nothing of what they do.
#include <algorithm>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_row.h"
#include "kernels/ref/ref_backend.h"

namespace infer {
namespace {

/// An option that is not given is "".
void require_known(const char* option, const std::string& value, const std::vector<std::string>& known) {
  if (value.empty() || std::find(known.begin(), known.end(), value) != known.end()) return;
  std::string allowed;
  for (const std::string& name : known) allowed += (allowed.empty() ? "" : ", ") + name;
  throw Error(ErrorKind::usage, option, "unknown", '"' + escaped(value) + '"', allowed);
}

}  // namespace

std::string FusedStages::note() const {
  std::string off;
  for (const auto& [on, name] :
       {std::pair(attn_in, "attn_in"), {attn_out, "attn_out"}, {ffn, "ffn"}, {logits, "logits"}})
    if (!on) off += (off.empty() ? " of " : ", ") + std::string(name);
  if (off.empty()) return {};
  return ", no fusion" + (attn_in || attn_out || ffn || logits ? off : "");
}

FusedStages fused_stages(const BackendOptions& options) {
  FusedStages out{options.fusion, options.fusion, options.fusion, options.fusion};
  for (const std::string& name : options.unfused) {
    require_known("fusion", name, {"attn_in", "attn_out", "ffn", "logits"});
    if (name == "attn_in") out.attn_in = false;
    if (name == "attn_out") out.attn_out = false;
    if (name == "ffn") out.ffn = false;
    if (name == "logits") out.logits = false;
  }
  return out;
}

const std::vector<BackendRow>& backends() {
  static const std::vector<BackendRow> rows = {
      {"cuda", "NVIDIA GPUs: hand-fused kernels, replayed", make_cuda_backend, &kCudaDevices},
      {"cpu", "any x86-64: AVX-512, AVX2 or plain code, chosen at run time, on all cores", make_cpu_backend},
      {"ref", "the oracle: float32, one thread, naive on purpose", make_ref_backend},
  };
  return rows;
}

const BackendRow& find_backend(const std::string& name) {
  std::string known;
  for (const BackendRow& row : backends()) {
    if (name == row.name) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw Error(ErrorKind::usage, "device", "no such backend", '"' + escaped(name) + '"', known);
}

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
  const BackendRow& row = find_backend(name);
  fused_stages(options);  // refuses unknown ones on every backend
  require_known("mode", options.mode, {"auto", "persistent", "graph", "eager"});
  require_known("act", options.act, {"auto", "f16", "bf16", "int8", "fp8"});
  if (options.mode == "persistent" && !fused_stages(options).all())
    throw Error(ErrorKind::usage, "mode", "one kernel for a whole step is made of fused stages", "persistent",
                "auto, graph, eager without fusion");
  return row.make(options);
}

}  // namespace infer
