// ★ The one table of backends. A new backend is a folder and a row here; --device takes these names. It knows how to
// make them and nothing of what they do.
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ref/ref_backend.h"

namespace infer {

const std::vector<BackendRow>& backends() {
  static const std::vector<BackendRow> rows = {
      {"cpu", "any x86-64: AVX-512, AVX2 or plain code, chosen at run time, on all cores", make_cpu_backend},
      {"ref", "the oracle: float32, one thread, naive on purpose", make_ref_backend},
  };
  return rows;
}

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
  std::string known;
  for (const BackendRow& row : backends()) {
    if (name == row.name) return row.make(options);
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw Error(ErrorKind::usage, "device", "no such backend", '"' + escaped(name) + '"', known);
}

}  // namespace infer
