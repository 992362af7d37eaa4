// Mutations of what keys, tensors and vocabulary mean: the reader takes these files, what follows it must not.
#include <limits>

#include "tests/runtime/gguf_corpus_edits.h"

namespace infer::test {
namespace {

constexpr uint64_t kOne = 1;

void add_weights(const CorpusAdder& add) {
  for (const char* tensor :
       {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight",
        "blk.0.attn_k.weight", "blk.1.attn_v.weight", "blk.1.attn_output.weight", "blk.0.ffn_norm.weight",
        "blk.0.ffn_gate.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"}) {
    add.edit(
        std::string("b27_without_") + tensor, [&](GgufWriter& f) { f.remove_tensor(tensor); }, tensor);
    add.edit(std::string("b27_renamed_") + tensor, [&](GgufWriter& f) { f.find_tensor(tensor).name += "x"; });
    add.edit(
        std::string("b28_flattened_") + tensor,
        [&](GgufWriter& f) {
          auto& dims = f.find_tensor(tensor).dims;
          dims = dims.size() == 1 ? std::vector<int64_t>{1, 1, dims[0]} : std::vector<int64_t>{dims[0] * dims[1]};
        },
        tensor);
    if (tensor == std::string(kEmbed)) continue;  // its rows are an odd number
    add.edit(
        std::string("b28_halved_and_doubled_") + tensor,
        [&](GgufWriter& f) {
          auto& dims = f.find_tensor(tensor).dims;
          dims =
              dims.size() == 1 ? std::vector<int64_t>{2, dims[0] / 2} : std::vector<int64_t>{dims[0] / 2, dims[1] * 2};
        },
        tensor);
  }
  add.edit(
      "b28_transposed_ffn_up",
      [](GgufWriter& f) {
        f.find_tensor("blk.0.ffn_up.weight").dims = {32, 64};
      },
      "blk.0.ffn_up.weight");
  add.edit(
      "b28_transposed_ffn_down",
      [](GgufWriter& f) {
        f.find_tensor("blk.0.ffn_down.weight").dims = {64, 32};
      },
      "blk.0.ffn_down.weight");
  add.edit(
      "b27_without_block_1",
      [](GgufWriter& f) { std::erase_if(f.tensors, [](const TensorSpec& t) { return t.name.starts_with("blk.1."); }); },
      "blk.1.");
  add.edit(
      "b27_extra_tensor", [](GgufWriter& f) { f.tensor("blk.0.extra.weight", DType::F32, {8}, std::string(32, '\0')); },
      "blk.0.extra.weight");
  add.edit(
      "b27_extra_block",
      [](GgufWriter& f) { f.tensor("blk.2.attn_norm.weight", DType::F32, {32}, std::string(128, '\0')); },
      "blk.2.attn_norm.weight");
  const struct {
    const char* name;
    uint32_t type;
    int64_t bytes;
  } types[] = {{"i8", 24, 1}, {"i16", 25, 2}, {"i32", 26, 4}, {"i64", 27, 8}, {"f64", 28, 8}};
  for (const auto& t : types)
    for (const char* tensor : {kEmbed, kNorm, kMiddle})
      add.edit(
          std::string("b29_") + tensor + "_as_" + t.name,
          [&](GgufWriter& f) {
            TensorSpec& spec = f.find_tensor(tensor);
            spec.type = t.type;
            int64_t n = t.bytes;
            for (const int64_t d : spec.dims) n *= d;
            spec.data.assign(static_cast<size_t>(n), '\0');
          },
          tensor);
  add.edit(
      "b29_type_without_kernel_iq2_xxs",
      [](GgufWriter& f) {
        f.find_tensor(kMiddle) = {kMiddle, 16, {64, 256}, std::string(64 * 66, '\0')};
      },
      kMiddle);
}

void add_wrong_types(const CorpusAdder& add) {
  const std::string key = "llama.block_count";
  const auto as = [&](const std::string& name, uint32_t type, const std::string& bytes) {
    add.edit(
        "c31_block_count_" + name, [&](GgufWriter& f) { f.raw(key, type, bytes); }, key);
  };
  as("string", string, gguf_string("2"));
  as("f32", f32, le(2.0f));
  as("f64", f64, le(2.0));
  as("bool", boolean, "\1");
  as("i32_negative", i32, le<int32_t>(-2));
  as("i64_negative", i64, le<int64_t>(-2));
  as("i64_min", i64, le(std::numeric_limits<int64_t>::min()));
  as("u64_max", u64, le(~uint64_t{0}));
  as("i8_negative", i8, "\xfe");
  as("array_of_u32", array, le<uint32_t>(u32) + le<uint64_t>(1) + le<uint32_t>(2));
  as("array_empty", array, le<uint32_t>(u32) + le<uint64_t>(0));
  as("array_of_strings", array, le<uint32_t>(string) + le<uint64_t>(1) + gguf_string("2"));
  as("f32_nan", f32, le(std::numeric_limits<float>::quiet_NaN()));
  for (const char* required :
       {"general.architecture", "llama.block_count", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"})
    add.edit(
        std::string("c31_without_") + required, [&](GgufWriter& f) { f.remove(required); }, required);
  for (const char* number : {"llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
                             "llama.attention.head_count_kv", "llama.context_length", "llama.rope.dimension_count"})
    add.edit(
        std::string("c31_string_") + number, [&](GgufWriter& f) { f.text(number, "32"); }, number);
  add.edit(
      "c31_architecture_u32", [](GgufWriter& f) { f.number("general.architecture", 1); }, "general.architecture");
  add.edit(
      "c31_rope_base_string", [](GgufWriter& f) { f.text("llama.rope.freq_base", "10000"); }, "llama.rope.freq_base");
  const auto same_as = [&](uint32_t type, const std::string& bytes) {
    return [=](GgufWriter& f) { f.raw(key, type, bytes); };
  };
  add.edit_loads("c31_block_count_u64", same_as(u64, le<uint64_t>(2)));
  add.edit_loads("c31_block_count_u8", same_as(u8, "\2"));
  add.edit_loads("c31_block_count_i32", same_as(i32, le<int32_t>(2)));
}

void add_sizes(const CorpusAdder& add) {
  const auto number = [&](const char* row, const std::string& key, std::initializer_list<uint32_t> values) {
    for (const uint32_t v : values)
      add.edit(std::string(row) + "_" + key + "_" + std::to_string(v), [&](GgufWriter& f) { f.number(key, v); });
  };
  const uint32_t max = 0xffffffffu, half = 0x80000000u;
  number("c32", "llama.attention.head_count", {0, 3, 5, 7, 33, 1025, half - 1, half, max});
  number("c32", "llama.attention.head_count_kv", {0, 3, 4, 1025, half, max});
  number("c32", "llama.attention.key_length", {0, 1, 33, 2048, half, max});
  number("c32", "llama.attention.value_length", {0, 1, 33, half, max});
  number("c33", "llama.block_count", {0, 1, 3, 1025, 1u << 20, half - 1, half, max});
  number("c33", "llama.embedding_length", {0, 1, 31, 33, 64, half - 1, half, max});
  number("c33", "llama.feed_forward_length", {0, 1, 63, 128, half - 1, half, max});
  number("c33", "llama.vocab_size", {0, half, max});
  number("c34", "llama.context_length", {0, half, max});
  number("c35", "llama.rope.dimension_count", {1, 3, 17, 18, 64, half, max});
  number("c37", "llama.expert_count", {8, max});
  const auto real = [&](const char* row, const std::string& key, const char* label, float value) {
    add.edit(
        std::string(row) + "_" + key + "_" + label, [&](GgufWriter& f) { f.real(key, value); }, key);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const struct {
    const char* label;
    float value;
  } bad[] = {{"zero", 0.0f}, {"negative", -1.0f}, {"nan", nan}, {"inf", inf}};
  for (const auto& b : bad) {
    real("c35", "llama.rope.freq_base", b.label, b.value);
    if (b.value != 0) real("c36", "llama.attention.layer_norm_rms_epsilon", b.label, b.value);
  }
  add.edit(
      "c35_scaling_type_unknown", [](GgufWriter& f) { f.text("llama.rope.scaling.type", "magic"); },
      "llama.rope.scaling.type");
  add.edit(
      "c35_scaling_factor_zero",
      [](GgufWriter& f) {
        f.text("llama.rope.scaling.type", "linear");
        f.real("llama.rope.scaling.factor", 0.0f);
      },
      "llama.rope.scaling.factor");
  add.edit(
      "c35_scaling_factor_nan",
      [nan](GgufWriter& f) {
        f.text("llama.rope.scaling.type", "linear");
        f.real("llama.rope.scaling.factor", nan);
      },
      "llama.rope.scaling.factor");
  add.edit(
      "c35_rope_factors_too_short",
      [](GgufWriter& f) { f.tensor("rope_freqs.weight", DType::F32, {4}, le(1.0f) + le(1.0f) + le(1.0f) + le(1.0f)); },
      "rope_freqs.weight");
  add.edit(
      "c35_rope_factors_zero",
      [](GgufWriter& f) { f.tensor("rope_freqs.weight", DType::F32, {8}, std::string(32, '\0')); }, "rope");
  add.edit(
      "c39_head_counts_too_few", [](GgufWriter& f) { f.numbers<uint32_t>("llama.attention.head_count", u32, {2}); },
      "llama.attention.head_count");
  add.edit(
      "c39_head_counts_with_zero",
      [](GgufWriter& f) {
        f.numbers<uint32_t>("llama.attention.head_count_kv", u32, {1, 0});
      },
      "llama.attention.head_count_kv");
  add.edit("c40_small_file_large_claims", [half](GgufWriter& f) {
    for (const char* key :
         {"llama.block_count", "llama.embedding_length", "llama.context_length", "llama.feed_forward_length"})
      f.number(key, half - 1);
  });
}

void add_architectures(const CorpusAdder& add) {
  using namespace std::string_literals;
  const struct {
    const char* label;
    std::string name;
  } names[] = {{"empty", ""},
               {"unknown", "frobnicator"},
               {"with_nul", "llama\0"s},
               {"upper", "LLAMA"},
               {"space", "llama "},
               {"prefix", "llam"},
               {"path", "../../etc/passwd"},
               {"format", "%s%n%s"},
               {"escape", "\x1b[2J"},
               {"invalid_utf8", "\xff\xfe"},
               {"1_MiB", std::string(1 << 20, 'l')}};
  for (const auto& n : names)
    add.edit(
        std::string("c38_architecture_") + n.label, [&](GgufWriter& f) { f.text("general.architecture", n.name); },
        "general.architecture");
}

void add_vocabularies(const CorpusAdder& add) {
  const auto edit_tokens = [&](const std::string& name, size_t count) {
    add.edit("e53_" + name, [&](GgufWriter& f) {
      std::vector<std::string> tokens;
      for (size_t i = 0; i < count; ++i) tokens.push_back(std::to_string(i));
      f.texts("tokenizer.ggml.tokens", tokens);
      f.numbers<int32_t>("tokenizer.ggml.token_type", i32, std::vector<int32_t>(count, 1));
    });
  };
  const auto n_tokens = static_cast<uint32_t>(small_model().find_tensor(kEmbed).dims[0]);
  edit_tokens("no_tokens", 0);
  edit_tokens("more_tokens_than_rows", n_tokens + 1);
  edit_tokens("twice_the_tokens", 2 * n_tokens);
  for (const char* id : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}) {
    const std::string label = std::string("e54_") + (id + 15);
    for (const uint32_t value : {n_tokens, n_tokens + 1, 0x7fffffffu, 0x80000000u})
      add.edit(
          label + "_" + std::to_string(value), [&](GgufWriter& f) { f.number(id, value); }, id);
    add.edit(
        label + "_2^40", [&](GgufWriter& f) { f.raw(id, u64, le(kOne << 40)); }, id);
    add.edit(
        label + "_string", [&](GgufWriter& f) { f.text(id, "1"); }, id);
  }
  const std::string types = "tokenizer.ggml.token_type", tokens = "tokenizer.ggml.tokens",
                    merges = "tokenizer.ggml.merges";
  add.edit(
      "e55_types_too_few",
      [&](GgufWriter& f) {
        f.numbers<int32_t>(types, i32, {1, 1, 1});
      },
      types);
  add.edit(
      "e55_types_as_strings",
      [&](GgufWriter& f) {
        f.texts(types, {"1", "2"});
      },
      types);
  add.edit(
      "e55_types_as_floats", [&](GgufWriter& f) { f.numbers<float>(types, f32, std::vector<float>(n_tokens, 1.0f)); },
      types);
  add.edit(
      "e55_types_scalar", [&](GgufWriter& f) { f.number(types, 1); }, types);
  add.edit(
      "e55_tokens_as_numbers",
      [&](GgufWriter& f) {
        f.numbers<uint8_t>(tokens, u8, {1, 2, 3});
      },
      tokens);
  add.edit(
      "e55_tokens_as_string", [&](GgufWriter& f) { f.text(tokens, "abc"); }, tokens);
  add.edit(
      "e55_without_tokens", [&](GgufWriter& f) { f.remove(tokens); }, tokens);
  const auto scores = [&](const std::string& name, auto edit) {
    GgufWriter file = small_model(true);
    edit(file);
    add.refused("e55_scores_" + name, file.bytes(), "tokenizer.ggml.scores");
  };
  scores("too_few", [](GgufWriter& f) { f.numbers<float>("tokenizer.ggml.scores", f32, {0, 0, 0}); });
  scores("as_u8", [](GgufWriter& f) {
    f.numbers<uint8_t>("tokenizer.ggml.scores", u8, std::vector<uint8_t>(f.find_tensor(kEmbed).dims[0], 1));
  });
  scores("as_strings", [](GgufWriter& f) { f.texts("tokenizer.ggml.scores", {"0"}); });
  for (const auto& [label, token] : std::vector<std::pair<std::string, std::string>>{{"negative", "<0x-1>"},
                                                                                     {"no_digits", "<0xZZ>"},
                                                                                     {"256", "<0x100>"},
                                                                                     {"empty", "<0x>"},
                                                                                     {"space", "<0x 1>"}}) {
    GgufWriter file = small_model(true);
    GgufWriter::Pair* pair = nullptr;
    for (GgufWriter::Pair& p : file.pairs)
      if (p.key == tokens) pair = &p;
    const std::string old = gguf_string("<0x41>");
    pair->bytes.replace(pair->bytes.find(old), old.size(), gguf_string(token));
    add.refused("e56_byte_token_" + label, file.bytes());
  }
  add.edit(
      "e57_merge_without_space", [&](GgufWriter& f) { f.texts(merges, {"ab"}); }, merges);
  add.edit(
      "e57_merge_empty", [&](GgufWriter& f) { f.texts(merges, {""}); }, merges);
  add.edit(
      "e57_merge_of_nothing", [&](GgufWriter& f) { f.texts(merges, {" "}); }, merges);
  add.edit(
      "e57_merges_as_numbers",
      [&](GgufWriter& f) {
        f.numbers<uint32_t>(merges, u32, {1, 2});
      },
      merges);
  add.edit(
      "e59_model_unknown", [](GgufWriter& f) { f.text("tokenizer.ggml.model", "magic"); }, "tokenizer.ggml.model");
  add.edit(
      "e59_pre_unknown", [](GgufWriter& f) { f.text("tokenizer.ggml.pre", "magic"); }, "tokenizer.ggml.pre");
}

}  // namespace

void add_meaning_mutations(std::vector<MutatedFile>& out) {
  const CorpusAdder add{out, true};
  add.edit_loads("a00_valid_spm", [](GgufWriter& f) { f = small_model(true); });
  add.edit_loads("b27_without_output_is_tied", [](GgufWriter& f) { f.remove_tensor(kLast); });
  add.edit_loads("c34_context_2^24", [](GgufWriter& f) { f.number("llama.context_length", 1u << 24); });
  add_weights(add);
  add_wrong_types(add);
  add_sizes(add);
  add_architectures(add);
  add_vocabularies(add);
}

}  // namespace infer::test
