// Which type activations and weights meet in on a GPU, as pure functions: no device is needed for these.
#include "kernels/backend.h"
#include "kernels/cuda/activations.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

TEST_CASE("activations of products: the weight's format decides unless a type was asked for") {
  CHECK(operand_type(DType::F32, Act::automatic) == DType::F32);
  CHECK(operand_type(DType::F16, Act::automatic) == DType::F16);
  CHECK(operand_type(DType::BF16, Act::automatic) == DType::BF16);
  CHECK(operand_type(DType::Q4_K, Act::automatic) == DType::BF16);
  CHECK(operand_type(DType::Q4_K, Act::int8) == DType::BF16);
  for (const DType type : {DType::F32, DType::F16, DType::BF16, DType::Q8_0}) {
    CHECK(operand_type(type, Act::f16) == DType::F16);
    CHECK(operand_type(type, Act::bf16) == DType::BF16);
  }
  CHECK(lies_ready(DType::F16, Act::automatic));
  CHECK(lies_ready(DType::F16, Act::f16));
  CHECK_FALSE(lies_ready(DType::F16, Act::bf16));
  CHECK_FALSE(lies_ready(DType::F32, Act::f16));
  CHECK_FALSE(lies_ready(DType::Q8_0, Act::bf16));
}

TEST_CASE("activations of products: fine weights lie as what f16 meets, unless bf16 or int8 was asked for") {
  for (const Act act : {Act::automatic, Act::f16, Act::int8, Act::fp8}) {
    CHECK(held_as(DType::BF16, WeightRole::fine_matrix, act) == DType::F16);
    CHECK(held_as(DType::BF16, WeightRole::matrix, act) == DType::BF16);
    CHECK(held_as(DType::BF16, WeightRole::embedding, act) == DType::BF16);
    for (const DType type : {DType::F32, DType::F16, DType::W4G, DType::W8F})
      CHECK(held_as(type, WeightRole::fine_matrix, act) == type);
    CHECK(held_as(DType::Q8_0, WeightRole::fine_matrix, act) == (act == Act::int8 ? DType::Q8_0 : DType::W8I));
    CHECK(held_as(DType::Q8_0, WeightRole::matrix, act) == DType::Q8_0);
  }
  CHECK(held_as(DType::BF16, WeightRole::fine_matrix, Act::bf16) == DType::BF16);
}

TEST_CASE("activations of products: what a model needs is what its weights lie as") {
  using Types = std::vector<DType>;
  Needs needs;
  needs.matrix_formats = {DType::BF16, DType::Q8_0};
  CHECK(held_needs(needs, Act::automatic).matrix_formats == needs.matrix_formats);  // none is fine
  needs.fine_formats = {DType::BF16, DType::MXFP4, DType::F16}, needs.expert_formats = {DType::BF16};
  CHECK(needs.all_matrix_formats() == Types{DType::BF16, DType::Q8_0, DType::BF16, DType::MXFP4, DType::F16});
  const Needs held = held_needs(needs, Act::automatic);
  CHECK(held.matrix_formats == Types{DType::BF16, DType::Q8_0, DType::F16, DType::MXFP4});
  CHECK(held.expert_formats == Types{DType::F16});
  CHECK(held.fine_formats.empty());
  CHECK(held_needs(needs, Act::bf16).matrix_formats == Types{DType::BF16, DType::Q8_0, DType::MXFP4, DType::F16});
  CHECK(held_needs(needs, Act::bf16).expert_formats == Types{DType::BF16});
  needs.matrix_formats = {}, needs.fine_formats = {DType::BF16, DType::Q8_0};
  CHECK(all_decode_packed(held_needs(needs, Act::f16).matrix_formats, Act::f16));
}

TEST_CASE("activations of products: fp8 is for prompts with quantised weights, all else is left alone") {
  for (const DType type : {DType::Q4_K, DType::Q8_0, DType::W8F, DType::W8I, DType::MXFP4}) {
    CHECK(operand_type(type, Act::fp8) == DType::F8_E4M3);
    CHECK_FALSE(lies_ready(type, Act::fp8));
    CHECK_FALSE(has_fixed_products(type, Act::fp8));
    CHECK(decodes_packed(type, Act::fp8));
  }
  for (const DType type : {DType::F32, DType::F16, DType::BF16}) {
    CHECK(operand_type(type, Act::fp8) == type);
    CHECK(lies_ready(type, Act::fp8));
    CHECK(decodes_packed(type, Act::fp8));
  }
  CHECK(parse_act("fp8") == Act::fp8);
  CHECK(std::string(act_name(Act::fp8)) == "fp8");
  CHECK(without_kernel({DType::Q4_K, DType::F16}, Act::fp8) == nullptr);
  CHECK(why_no_fp8({DType::Q4_K, DType::F16}, 9, 0).empty());
  CHECK(why_no_fp8({DType::W8F}, 8, 9).empty());
  CHECK(why_no_fp8({}, 9, 0).empty());
  CHECK_THAT(why_no_fp8({DType::BF16, DType::F32}, 9, 0), Catch::Contains("--quant Q8_0"));
  CHECK_THAT(why_no_fp8({DType::Q8_0}, 8, 6), Catch::Contains("8.9 or newer, not 8.6"));
}

TEST_CASE("activations of products: the kernels of few rows have one form for each format") {
  CHECK(all_decode_packed({DType::Q4_K, DType::F32, DType::BF16}, Act::automatic));
  CHECK(all_decode_packed({DType::Q4_K, DType::Q6_K}, Act::int8));
  CHECK(all_decode_packed({DType::BF16}, Act::bf16));
  CHECK_FALSE(all_decode_packed({DType::BF16}, Act::f16));
  CHECK_FALSE(all_decode_packed({DType::BF16, DType::Q8_0}, Act::bf16));
  CHECK(all_decode_packed({DType::W8F, DType::BF16}, Act::automatic));
  CHECK(all_decode_packed({DType::W8F, DType::W8I}, Act::f16));
  CHECK_FALSE(all_decode_packed({DType::W8F}, Act::bf16));
  CHECK(*without_kernel({DType::Q4_K, DType::W8F}, Act::int8) == DType::W8F);
  CHECK(*without_kernel({DType::Q4_K, DType::W8I}, Act::int8) == DType::W8I);
  CHECK(int8_knows(DType::W8I));  // as Q8_0, for more than two rows
  CHECK_FALSE(int8_knows(DType::W8F));
  CHECK(without_kernel({DType::Q4_K, DType::Q6_K}, Act::int8) == nullptr);
  CHECK(without_kernel({DType::BF16}, Act::bf16) == nullptr);
  CHECK(*without_kernel({DType::Q4_K, DType::F16}, Act::int8) == DType::F16);
}

TEST_CASE("activations of products are described, with what is slow") {
  const std::vector<DType> k_quants = {DType::Q4_K, DType::Q6_K};
  CHECK(describe_activations(k_quants, Act::automatic, true) == "activations int8, in prompts bf16");
  CHECK(describe_activations(k_quants, Act::automatic, false) == "activations int8");
  CHECK(describe_activations({DType::W8F}, Act::automatic, true) == "activations f16, in prompts bf16");
  CHECK(describe_activations({DType::W8I, DType::F16}, Act::automatic, true) == "activations f16, in prompts bf16/f16");
  CHECK(describe_activations({DType::BF16}, Act::automatic, true) == "activations bf16");
  CHECK(describe_activations({DType::BF16}, Act::bf16, true) == "activations bf16");
  CHECK(describe_activations({DType::Q8_0, DType::F16}, Act::automatic, true) ==
        "activations int8/f16, in prompts bf16/f16");
  CHECK(describe_activations(k_quants, Act::f16, true) ==
        "activations f16, weights unpacked for every product, no persistent kernel (slow)");
  CHECK(describe_activations(k_quants, Act::int8, true) ==
        "activations int8, four tokens of a prompt at a time (slow)");
  CHECK(describe_activations(k_quants, Act::fp8, true) == "activations int8, in prompts fp8");
  CHECK(describe_activations({DType::Q8_0, DType::F16}, Act::fp8, true) == "activations int8/f16, in prompts fp8/f16");
  CHECK(describe_activations({DType::W8F}, Act::fp8, true) == "activations f16, in prompts fp8");
  CHECK(describe_activations({}, Act::automatic, true).empty());
}

TEST_CASE("activations that a backend has no kernel for are refused with the weights' format") {
  const auto refusal = [](const char* device, const char* act, std::vector<DType> formats) -> std::string {
    BackendOptions options;
    options.act = act;
    Needs needs;
    needs.matrix_formats = std::move(formats);
    try {
      make_backend(device, options)->check_activations(needs);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.what();
    }
    return "";
  };
  CHECK(refusal("cpu", "auto", {DType::Q4_K, DType::F16}).empty());
  CHECK(refusal("cpu", "int8", {DType::Q4_K, DType::Q6_K}).empty());
  CHECK_THAT(refusal("cpu", "bf16", {DType::BF16}), Catch::Contains("bf16 with BF16"));
  CHECK_THAT(refusal("cpu", "bf16", {DType::Q4_K}), Catch::Contains("bf16 with Q4_K"));
  CHECK_THAT(refusal("cpu", "int8", {DType::Q4_K, DType::F16}), Catch::Contains("int8 with F16"));
  CHECK_THAT(refusal("ref", "f16", {DType::F32}), Catch::Contains("float32"));
  CHECK(refusal("ref", "auto", {DType::Q4_K}).empty());
  CHECK_THAT(refusal("cpu", "fp8", {DType::Q8_0}), Catch::Contains("fp8 with Q8_0"));
  CHECK_THAT(refusal("ref", "fp8", {DType::Q8_0}), Catch::Contains("float32"));
  CHECK_THAT(refusal("cpu", "fp4", {}), Catch::Contains("auto, f16, bf16, int8, fp8"));
}
