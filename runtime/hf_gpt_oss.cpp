// See hf_gpt_oss.h. A block is 32 weights in both forms.
#include "runtime/hf_gpt_oss.h"

#include "quant/formats.h"
#include "runtime/hf_quant_codes.h"
#include "runtime/row_reader.h"

namespace infer {
namespace {

constexpr int64_t kCodeBytes = 16, kBlockBytes = 1 + kCodeBytes;
static_assert(sizeof(MXFP4::Block) == kBlockBytes && MXFP4::block == 2 * kCodeBytes);

const HostTensor& part(const Checkpoint& checkpoint, int64_t layer, const GptOssParts& parts, std::string_view name,
                       DType dtype, size_t n_dims) {
  const auto found = parts.find(name);
  const std::string where = "model.layers." + std::to_string(layer) + ".mlp.experts";
  if (found == parts.end()) checkpoint.refuse(where, "required tensor is missing", "", std::string(name));
  const HostTensor& tensor = *found->second;
  if (tensor.dims.size() != n_dims || (dtype == DType::U8 && tensor.dtype != dtype))
    checkpoint.refuse(tensor.name, "wrong shape or type", std::to_string(tensor.dims.size()) + " dimensions",
                      std::to_string(n_dims) + " dimensions" + (dtype == DType::U8 ? " of U8" : ""));
  return tensor;
}

/// Rows `first`, first + step, ... of every expert, yet to be made.
HostTensor relaid(const std::string& name, const HostTensor& blocks, const HostTensor& scales, int64_t first,
                  int64_t step, const ReadBytes& read) {
  const int64_t n_experts = blocks.dims[0], rows = blocks.dims[1] / step, n_blocks = blocks.dims[2];
  HostTensor out;
  out.name = name;
  out.dtype = DType::MXFP4;
  out.dims = {n_experts, rows, n_blocks * MXFP4::block};
  out.bytes = static_cast<size_t>(n_experts * rows * n_blocks * kBlockBytes);
  out.made_of = {{blocks.data, blocks.bytes}, {scales.data, scales.bytes}};
  out.make = [=, codes = blocks.data, e = scales.data](int64_t row, int64_t n, std::byte* to) {
    // Rows of an expert follow those of the one before. Those between are read, too: to pass over each costs more.
    RowReader rows(codes, n_blocks * kCodeBytes, row * step, (row + n) * step, read);
    RowReader exponents(e, n_blocks, row * step, (row + n) * step, read);
    for (int64_t r = row; r < row + n; ++r) {
      const std::byte* const from = rows.row(r * step + first);
      const std::byte* const exponent = exponents.row(r * step + first);
      for (int64_t b = 0; b < n_blocks; ++b, to += kBlockBytes) {
        to[0] = exponent[b];
        put_neighbours(from + b * kCodeBytes, to + 1);
      }
    }
  };
  return out;
}

void require_match(const Checkpoint& checkpoint, const HostTensor& blocks, const HostTensor& scales, int64_t step) {
  const std::vector<int64_t> want(blocks.dims.begin(), blocks.dims.end() - 1);
  if (blocks.dims[3] != kCodeBytes)
    checkpoint.refuse(blocks.name, "wrong shape", "blocks of " + std::to_string(blocks.dims[3]) + " bytes", "16 bytes");
  if (scales.dims != want) checkpoint.refuse(scales.name, "the shape does not match that of the blocks");
  if (blocks.dims[1] % step != 0)
    checkpoint.refuse(blocks.name, "an odd number of rows", std::to_string(blocks.dims[1]), "gate and up in turn");
}

HostTensor every_second(const Checkpoint& checkpoint, const std::string& name, const HostTensor& bias, size_t first,
                        OwnedBytes& owned) {
  if (bias.dims[1] % 2 != 0)
    checkpoint.refuse(bias.name, "an odd number of rows", std::to_string(bias.dims[1]), "gate and up in turn");
  const std::vector<float> all = owned_floats(checkpoint, bias);
  std::vector<float> values;
  for (size_t i = first; i < all.size(); i += 2) values.push_back(all[i]);
  HostTensor like = bias;
  like.name = name;
  like.dims[1] /= 2;
  return owned_tensor(owned, like, values);
}

}  // namespace

std::vector<HostTensor> gpt_oss_experts(const Checkpoint& checkpoint, int64_t layer, const GptOssParts& parts,
                                        OwnedBytes& owned) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  const auto get = [&](std::string_view name, DType dtype, size_t n_dims) -> const HostTensor& {
    return part(checkpoint, layer, parts, name, dtype, n_dims);
  };
  const HostTensor& gate_up = get("gate_up_blocks", DType::U8, 4);
  const HostTensor& gate_up_scales = get("gate_up_scales", DType::U8, 3);
  const HostTensor& down = get("down_blocks", DType::U8, 4);
  const HostTensor& down_scales = get("down_scales", DType::U8, 3);
  const HostTensor& bias = get("gate_up_bias", DType::BF16, 2);
  require_match(checkpoint, gate_up, gate_up_scales, 2);
  require_match(checkpoint, down, down_scales, 1);
  std::vector<HostTensor> out;
  out.push_back(relaid(prefix + "ffn_gate_exps.weight", gate_up, gate_up_scales, 0, 2, checkpoint.read));
  out.push_back(relaid(prefix + "ffn_up_exps.weight", gate_up, gate_up_scales, 1, 2, checkpoint.read));
  out.push_back(relaid(prefix + "ffn_down_exps.weight", down, down_scales, 0, 1, checkpoint.read));
  out.push_back(every_second(checkpoint, prefix + "ffn_gate_exps.bias", bias, 0, owned));
  out.push_back(every_second(checkpoint, prefix + "ffn_up_exps.bias", bias, 1, owned));
  return out;
}

}  // namespace infer
