// See hf_quant_tensors.h.
#include "runtime/hf_quant_tensors.h"

#include <algorithm>
#include <map>

#include "infer/error.h"
#include "kernels/tensor.h"
#include "models/parallel.h"
#include "quant/formats.h"
#include "runtime/hf_quant_module.h"

namespace infer {
namespace {

/// What only concerns the quantisation of activations and caches.
constexpr std::string_view kActivationParts[] = {"input_scale", "input_zero_point", "output_scale",
                                                 "k_scale",     "v_scale",          "q_scale"};

/// Whether a tensor of this name is part of a quantised module.
bool is_part(const HfQuant& quant, std::string_view part, DType dtype) {
  const auto among = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), part) != names.end();
  };
  switch (quant.method) {
    case QuantMethod::awq:
      return among({"qweight", "qzeros", "scales"});
    case QuantMethod::gptq:
      return among({"qweight", "qzeros", "scales", "g_idx"});
    case QuantMethod::packed_ints:
      return among({"weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"});
    default:
      return among({"weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx"}) ||
             (part == "weight" && (dtype == DType::I8 || dtype == DType::F8_E4M3));
  }
}

/// Takes the parts of quantised modules out of `tensors`; the others become `rest`.
std::vector<HfModule> find_modules(const Checkpoint& checkpoint, const HfQuant& quant, std::vector<HostTensor>& rest) {
  std::vector<HfModule> modules;
  std::map<std::string, size_t> at;
  for (const HostTensor& tensor : checkpoint.tensors) {
    const size_t dot = tensor.name.rfind('.');
    const std::string part = dot == std::string::npos ? "" : tensor.name.substr(dot + 1);
    if (std::find(std::begin(kActivationParts), std::end(kActivationParts), part) != std::end(kActivationParts))
      continue;
    if (part.empty() || !is_part(quant, part, tensor.dtype)) {
      rest.push_back(tensor);
      continue;
    }
    const std::string name = tensor.name.substr(0, dot);
    const auto [place, is_new] = at.emplace(name, modules.size());
    if (is_new) modules.push_back({name, {}});
    modules[place->second].parts.emplace(part, &tensor);
  }
  return modules;
}

/// Bytes to read.
std::vector<double> work_of(const std::vector<HfModule>& modules) {
  std::vector<double> work;
  for (const HfModule& module : modules) {
    double bytes = 0;
    for (const auto& [part, tensor] : module.parts) bytes += static_cast<double>(tensor->bytes);
    work.push_back(bytes);
  }
  return work;
}

/// One line for each kind of matrix that is not what the file says bit for bit, or larger than there.
void warn(Checkpoint& checkpoint, const std::vector<KeptMatrix>& kept) {
  struct Sum {
    size_t matrices = 0, bytes = 0;
  };
  std::map<std::string, Sum> kinds;
  for (const KeptMatrix& matrix : kept) {
    if (matrix.because.empty()) continue;
    const bool plain = find_format(matrix.tensor.dtype)->block == 1;
    Sum& sum = kinds[format_name(matrix.tensor.dtype) + (matrix.rounded ? " (rounded)" : "") + ", since " +
                     matrix.because + (plain ? "; --quant Q8_0 makes them smaller" : "")];
    ++sum.matrices;
    sum.bytes += matrix.tensor.bytes;
  }
  for (const auto& [kind, sum] : kinds)
    checkpoint.warnings.push_back(std::to_string(sum.matrices) + " quantised matrices take " +
                                  std::to_string((sum.bytes >> 20) + 1) + " MiB as " + kind);
}

}  // namespace

void unpack_quantised(Checkpoint& checkpoint, const HfQuant& quant, const UnpackOptions& options) {
  if (quant.method == QuantMethod::none || quant.method == QuantMethod::mxfp4) return;
  std::vector<HostTensor> tensors;
  const std::vector<HfModule> modules = find_modules(checkpoint, quant, tensors);
  if (modules.empty()) checkpoint.refuse("quantization_config", "names a method, and no tensor is quantised that way");
  std::vector<KeptMatrix> kept(modules.size());
  const auto read = [&](size_t i) { kept[i] = read_module(checkpoint, quant, modules[i], options.keep); };
  if (!run_parallel(work_of(modules), options.n_threads, read, options.progress))
    throw Error(ErrorKind::run, escaped(checkpoint.path), "loading was cancelled");
  warn(checkpoint, kept);
  for (KeptMatrix& matrix : kept) tensors.push_back(std::move(matrix.tensor));
  checkpoint.tensors = std::move(tensors);
  checkpoint.index_tensors();
}

}  // namespace infer
