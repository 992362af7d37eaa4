// How activations meet weights in products (--act): the type that both operands take on the tensor cores, and which
// kernels do what was asked for. Left alone, the format of the weight decides: the kernels of few rows take quantised
// weights with int8 activations (dp4a), prompts unpack them to bf16, and plain weights meet their own type. With fp8
// prompts unpack quantised weights to e4m3 (e4m3.h), and all else is as if left alone. Plain C++, free of devices and
// part of every build.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "infer/error.h"
#include "kernels/backend.h"
#include "kernels/cuda/packed.h"

namespace infer::cuda {

enum class Act { automatic, f16, bf16, int8, fp8 };

inline const char* act_name(Act act) {
  const char* const names[] = {"auto", "f16", "bf16", "int8", "fp8"};
  return names[static_cast<int>(act)];
}
inline Act parse_act(const std::string& name) {
  for (const Act act : {Act::automatic, Act::f16, Act::bf16, Act::int8, Act::fp8})
    if (name == act_name(act)) return act;
  if (name.empty()) return Act::automatic;
  throw Error(ErrorKind::usage, "act", "unknown", '"' + escaped(name) + '"', "auto, f16, bf16, int8, fp8");
}

/// Whether few rows meet a weight as its format wants it.
inline bool few_by_format(Act act) { return act == Act::automatic || act == Act::fp8; }

inline bool is_plain(DType dtype) { return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16; }

/// Whether matmul_int8 has kernels for a packed format.
inline bool int8_knows(DType format) { return format != DType::W8F; }

/// The type of both operands of a product on the tensor cores. F32 weights lose nothing; bf16 holds whatever a
/// quantised weight can be.
inline DType operand_type(DType weight, Act act) {
  if (act == Act::f16) return DType::F16;
  if (act == Act::bf16) return DType::BF16;
  if (act == Act::fp8 && !is_plain(weight)) return DType::F8_E4M3;
  return weight == DType::F32 || weight == DType::F16 ? weight : DType::BF16;
}

/// As what weights lie on the device. Of fine ones more is kept of their activations than bf16 or int8 would, unless
/// that is what was asked for: f16, which is eight times as fine as bf16, and clamped at 65504.
inline DType held_as(DType weight, WeightRole role, Act act) {
  if (role != WeightRole::fine_matrix) return weight;
  if (weight == DType::BF16 && act != Act::bf16) return DType::F16;
  return weight == DType::Q8_0 && act != Act::int8 ? DType::W8I : weight;
}
/// What a model needs when its weights lie like that: none of its formats is a fine one any more.
inline Needs held_needs(Needs needs, Act act) {
  const auto add = [](DType format, std::vector<DType>& to) {
    if (std::ranges::find(to, format) == to.end()) to.push_back(format);
  };
  std::vector<DType> of_experts;
  for (const DType format : needs.expert_formats) {
    const bool fine = std::ranges::find(needs.fine_formats, format) != needs.fine_formats.end();
    add(held_as(format, fine ? WeightRole::fine_matrix : WeightRole::matrix, act), of_experts);
  }
  needs.expert_formats = std::move(of_experts);
  for (const DType format : needs.fine_formats)
    add(held_as(format, WeightRole::fine_matrix, act), needs.matrix_formats);
  needs.fine_formats.clear();
  return needs;
}

/// Whether the tensor cores read a weight where it lies; else it is brought into operand_type() first, in scratch.
inline bool lies_ready(DType weight, Act act) { return is_plain(weight) && operand_type(weight, act) == weight; }

/// Whether the kernels of few rows, which have one form of activations for each format, have the one asked for.
inline bool decodes_packed(DType weight, Act act) {
  if (few_by_format(act)) return true;
  if (meets_f16(weight)) return act == Act::f16;
  return act == Act::int8 ? !is_plain(weight) : lies_ready(weight, act);
}
inline bool all_decode_packed(const std::vector<DType>& weights, Act act) {
  for (const DType weight : weights)
    if (!decodes_packed(weight, act)) return false;
  return true;
}

/// Whether the products of --deterministic, which have one form of activations for each format, have the one asked for.
inline bool has_fixed_products(DType weight, Act act) {
  return act != Act::int8 && operand_type(weight, act) == operand_type(weight, Act::automatic);
}

/// The first format of floats, which int8 activations have no kernel for; null when there is none, or no int8.
inline const DType* without_kernel(const std::vector<DType>& weights, Act act) {
  for (const DType& weight : weights)
    if (act == Act::int8 && (is_plain(weight) || meets_f16(weight))) return &weight;
  return nullptr;
}

/// Why products of e4m3 are of no use to these weights, or not to be had from a GPU of this compute capability; empty
/// when all is well.
inline std::string why_no_fp8(const std::vector<DType>& weights, int major, int minor) {
  if (!weights.empty() && std::all_of(weights.begin(), weights.end(), is_plain))
    return "only quantised weights become e4m3: load these with --quant Q8_0";
  if (10 * major + minor < 89)
    return "needs tensor cores for e4m3: compute capability 8.9 or newer, not " + std::to_string(major) + '.' +
           std::to_string(minor);
  return {};
}

inline std::string type_name(DType operand) {
  return operand == DType::F32 ? "f32" : operand == DType::F16 ? "f16" : operand == DType::F8_E4M3 ? "fp8" : "bf16";
}

/// Each name once, "int8/f16".
inline std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (auto name = names.begin(); name != names.end(); ++name) {
    if (std::find(names.begin(), name, *name) != name) continue;
    if (!out.empty()) out.append("/");
    out.append(*name);
  }
  return out;
}

/// "activations int8, in prompts bf16": what will meet weights of these formats, and what is slow about it. `wide`:
/// whether there are tensor cores for prompts; else the kernels of few rows take them. `fixed`: --deterministic.
inline std::string describe_activations(const std::vector<DType>& weights, Act act, bool wide, bool fixed = false) {
  if (weights.empty()) return {};
  if (fixed) {
    std::vector<std::string> types;
    for (const DType weight : weights) types.push_back(type_name(operand_type(weight, act)));
    return "deterministic (slower), activations " + joined(types);
  }
  if (act == Act::int8) return "activations int8, four tokens of a prompt at a time (slow)";
  std::vector<std::string> few, many;
  for (const DType weight : weights) {
    const DType operand = operand_type(weight, act);
    const std::string type = type_name(operand);
    const bool codes = !is_plain(weight) && !meets_f16(weight);
    few.push_back(few_by_format(act) && codes ? "int8" : meets_f16(weight) && act != Act::bf16 ? "f16" : type);
    many.push_back(wide ? type : few.back());
  }
  std::string text = "activations ";
  text.append(joined(few));
  if (joined(many) != joined(few)) text.append(", in prompts ").append(joined(many));
  if (!all_decode_packed(weights, act))
    text.append(", weights unpacked for every product, no persistent kernel (slow)");
  return text;
}

}  // namespace infer::cuda
