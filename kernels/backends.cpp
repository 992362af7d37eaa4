// ★ The one table of backends. A new backend is a folder and a row here; --device takes these names. It knows how to
// make them and nothing of what they do.
#include <algorithm>
#include <iterator>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_row.h"
#include "kernels/ref/ref_backend.h"

namespace infer {

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
  const char* const modes[] = {"", "auto", "persistent", "graph", "eager"};
  if (std::find(std::begin(modes), std::end(modes), options.mode) == std::end(modes))
    throw Error(ErrorKind::usage, "mode", "unknown", '"' + escaped(options.mode) + '"',
                "auto, persistent, graph, eager");
  if (options.mode == "persistent" && !options.fusion)
    throw Error(ErrorKind::usage, "mode", "one kernel for a whole step is made of fused stages", "persistent",
                "auto, graph, eager without fusion");
  return row.make(options);
}

}  // namespace infer
