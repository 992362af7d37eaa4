// Mutations of the container: magic, version, counts, keys, values, alignment, ends.
#include "tests/runtime/gguf_corpus.h"

#include <algorithm>

#include "tests/runtime/gguf_corpus_edits.h"

namespace infer::test {
namespace {

constexpr uint64_t kHuge[] = {uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 60, uint64_t{1} << 63, ~uint64_t{0}};

std::string with_key(const std::string& key, uint32_t type, const std::string& bytes) {
  GgufWriter file = small_model();
  file.raw(key, type, bytes);
  return file.bytes();
}

void add_wrong_files(const CorpusAdder& add) {
  using namespace std::string_literals;
  const std::string good = small_model().bytes();
  add.loads("a00_valid", good);
  add.refused("a01_empty", "", "empty");
  for (const size_t n : {1, 2, 3, 4, 5, 7, 8, 12, 16, 20, 23})
    add.refused("a01_only_" + std::to_string(n) + "_bytes", good.substr(0, n));
  add.refused("a01_git_lfs_pointer",
              "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4372811936\n", "git-lfs");
  add.refused("a01_html", "<!DOCTYPE html>\n<html><head><title>404</title></head></html>", "HTML");
  add.refused("a01_html_indented", "\n  <html lang=en><body>rate limited</body></html>", "HTML");
  add.refused("a01_zip", "PK\x03\x04\x14\0\0\0\x08\0archive/data.pkl"s, "zip");
  add.refused("a01_gzip", "\x1f\x8b\x08\0\0\0\0\0\0\x03\0\0"s, "gzip");
  add.refused("a01_xz",
              "\xfd"
              "7zXZ\0\0\x04"s,
              "xz");
  add.refused("a01_zstd", "\x28\xb5\x2f\xfd\x04\0"s, "zstd");
  add.refused("a01_pickle", "\x80\x02}q\0(X\x05\0\0\0modelq\x01"s, "pickle");
  add.refused("a01_safetensors", le<uint64_t>(16) + "{\"__metadata__\":{}}", "safetensors");
  add.refused("a01_json", "{\"architectures\": [\"LlamaForCausalLM\"]}", "JSON");
  add.refused("a01_text", "hello, this is not a model\n", "hello");
  add.refused("a01_terminal_escapes", "\x1b[2J\x1b[31mfake: ok\n\n\nGGUF", "\\x1b");
  add.refused("a01_zeros", std::string(4096, '\0'), "zero");
  add.refused("a01_ggml", "lmgg\0\0\0\0"s, "GGML");
  add.refused("a01_ggjt", "tjgg\x03\0\0\0"s, "GGJT");
  add.refused("a01_magic_lower", "gguf" + good.substr(4));
  add.refused("a01_magic_shifted", "\n" + good);
  add.refused("a01_magic_swapped", "FUGG" + good.substr(4));
  add.refused("a01_elf",
              "\x7f"
              "ELF\x02\x01\x01\0"s,
              "program");
}

std::string big_endian_file() {
  const auto be = [](uint64_t value, int n) {
    std::string out;
    while (n--) out += static_cast<char>(value >> (8 * n));
    return out;
  };
  const auto text = [&](const std::string& s) { return be(s.size(), 8) + s; };
  return "GGUF" + be(3, 4) + be(0, 8) + be(1, 8) + text("general.architecture") + be(8, 4) + text("llama");
}

std::string version_1_file() {  // counts and lengths were 32 bits wide
  const auto text = [](const std::string& s) { return le(static_cast<uint32_t>(s.size())) + s; };
  return "GGUF" + le<uint32_t>(1) + le<uint32_t>(0) + le<uint32_t>(1) + text("general.architecture") + le<uint32_t>(8) +
         text("llama");
}

void add_header(const CorpusAdder& add) {
  const GgufImage good = small_model().image();
  for (const uint32_t version : {0u, 1u, 4u, 5u, 0x7fffffffu, 0xffffffffu})
    add.refused("a02_version_" + std::to_string(version), good.patched("version", version), "version");
  add.refused("a02_version_3_swapped", good.patched("version", 0x03000000u), "big-endian");
  add.refused("a02_version_2_swapped", good.patched("version", 0x02000000u), "big-endian");
  add.refused("a02_big_endian", big_endian_file(), "big-endian");
  add.refused("a02_version_1_file", version_1_file(), "version");
  add.loads("a02_version_2", good.patched("version", 2u));

  const GgufWriter model = small_model();
  const uint64_t n_tensors = model.tensors.size(), n_keys = model.pairs.size();
  for (const uint64_t n : kHuge) {
    add.refused("a03_n_tensors_" + std::to_string(n), good.patched("n_tensors", n), "number of tensors");
    add.refused("a03_n_keys_" + std::to_string(n), good.patched("n_keys", n), "number of keys");
  }
  add.refused("a04_n_tensors_plus_1", good.patched("n_tensors", n_tensors + 1));
  add.refused("a04_n_tensors_minus_1", good.patched("n_tensors", n_tensors - 1), "more tensors");
  add.refused("a04_n_tensors_0", good.patched("n_tensors", uint64_t{0}), "more tensors");
  add.refused("a04_n_tensors_twice", good.patched("n_tensors", 2 * n_tensors));
  add.refused("a04_n_keys_plus_1", good.patched("n_keys", n_keys + 1));
  add.refused("a04_n_keys_minus_1", good.patched("n_keys", n_keys - 1), "more keys");
  add.refused("a04_n_keys_0", good.patched("n_keys", uint64_t{0}), "more keys");
  add.refused("a04_n_keys_twice", good.patched("n_keys", 2 * n_keys));
  GgufWriter vocabulary = small_model();  // without tensors the keys are the end of the file
  vocabulary.tensors.clear();
  add.refused("a04_vocabulary_n_keys_minus_1", vocabulary.image().patched("n_keys", n_keys - 1), "more keys");
  add.refused("a04_vocabulary_n_tensors_1", vocabulary.image().patched("n_tensors", uint64_t{1}));
}

void add_strings(const CorpusAdder& add) {
  const GgufImage good = small_model().image();
  const struct {
    const char *name, *mark;
    size_t offset;
    const char* expect;
  } places[] = {{"key", "key general.architecture length", 0, "key number 1"},
                {"value", "key general.name value", 0, "key general.name"},
                {"list_element", "key tokenizer.ggml.tokens value", 12, "tokenizer.ggml.tokens"},
                {"tensor_name", "tensor output_norm.weight length", 0, "tensor number"}};
  for (const auto& place : places)
    for (const uint64_t n : {~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{1} << 63, uint64_t{1} << 31,
                             static_cast<uint64_t>(good.bytes.size() + 1)}) {
      std::string bytes = good.bytes;
      bytes.replace(good.at(place.mark) + place.offset, 8, le(n));
      add.refused(std::string("a05_length_of_") + place.name + "_" + std::to_string(n), std::move(bytes), place.expect);
    }
}

void add_value_types(const CorpusAdder& add) {
  const struct {
    const char* name;
    GgufType type;
  } types[] = {{"u8", u8},   {"i8", i8},   {"u16", u16},      {"i16", i16},       {"u32", u32}, {"i32", i32},
               {"f32", f32}, {"f64", f64}, {"bool", boolean}, {"string", string}, {"u64", u64}, {"i64", i64}};
  const uint64_t e = 1;
  for (const auto& t : types)
    for (const uint64_t n : {e << 61, (e << 62) + 1, ~uint64_t{0}})
      add.key(std::string("a06_array_of_") + t.name + "_" + std::to_string(n), "test.array", array,
              le<uint32_t>(t.type) + le(n) + std::string(64, '\0'), "test.array");
  for (const uint32_t type : {13u, 14u, 99u, 255u, 65536u, 0x80000000u, 0xffffffffu}) {
    add.key("a07_value_type_" + std::to_string(type), "test.value", type, std::string(16, '\0'), "value type");
    add.key("a07_element_type_" + std::to_string(type), "test.value", array, le(type) + le<uint64_t>(4) + "0123",
            "element type");
    add.key("a07_endless_elements_of_type_" + std::to_string(type), "test.value", array, le(type) + le(e << 60),
            "element type");
  }
  for (const int depth : {2, 5, 100, 1000, 200000}) {
    std::string bytes;
    for (int i = 1; i < depth; ++i) bytes += le<uint32_t>(array) + le<uint64_t>(1);
    add.key("a08_arrays_nested_" + std::to_string(depth) + "_deep", "test.nested", array,
            bytes + le<uint32_t>(u8) + le<uint64_t>(1) + "x", "array");
  }
  std::string empty_arrays = le<uint32_t>(array) + le<uint64_t>(200000);
  for (int i = 0; i < 200000; ++i) empty_arrays += le<uint32_t>(u8) + le<uint64_t>(0);
  add.key("a08_200000_empty_arrays", "test.nested", array, empty_arrays, "array");
  add.loads("a08_empty_array", with_key("test.empty", array, le<uint32_t>(string) + le<uint64_t>(0)));

  for (const int value : {2, 3, 128, 255})
    add.key("a11_bool_" + std::to_string(value), "tokenizer.ggml.add_bos_token", boolean, std::string(1, char(value)),
            "add_bos_token");
  add.key("a11_bool_2_in_array", "test.bools", array,
          le<uint32_t>(boolean) + le<uint64_t>(3) + std::string("\0\1\2", 3), "bool");
}

void add_keys(const CorpusAdder& add) {
  using namespace std::string_literals;
  const auto twice = [](const std::string& key, uint32_t type, const std::string& bytes) {
    GgufWriter file = small_model();
    file.pairs.push_back({key, type, bytes});
    return file.bytes();
  };
  add.refused("a09_key_twice", twice("llama.block_count", u32, le<uint32_t>(2)), "llama.block_count");
  add.refused("a09_key_twice_other_value", twice("llama.block_count", u32, le<uint32_t>(1)), "llama.block_count");
  add.refused("a09_key_twice_other_type", twice("general.name", u8, "x"), "general.name");
  GgufWriter many = small_model();
  for (int i = 0; i < 200000; ++i) many.pairs.push_back({"test.k" + std::to_string(i), u8, "x"});
  add.loads("a09_200000_keys", many.bytes());
  many.pairs.push_back({"test.k77", u8, "x"});
  add.refused("a09_200000_keys_and_one_twice", many.bytes(), "test.k77");

  add.key("a10_key_empty", "", u8, "x", "empty");
  add.key("a10_key_65536_bytes", std::string(65536, 'k'), u8, "x", "too long");
  add.key("a10_key_1_MiB", std::string(1 << 20, 'k'), u8, "x", "too long");
  add.loads("a10_key_65535_bytes", with_key(std::string(65535, 'k'), u8, "x"));
  add.loads("a10_key_percent_n", with_key("test.%n%n%s", u8, "x"));
  add.key("a10_key_with_nul", "llama.block_count\0"s, u32, le<uint32_t>(2), "\\x00");
  add.key("a10_key_invalid_utf8", "test.\xff\xfe", u8, "x", "\\xff");
  add.key("a10_key_overlong_utf8", "test.\xc0\xaf", u8, "x", "\\xc0");
  add.key("a10_key_terminal_escape", "test.\x1b[2J\x1b[1;1H\ninfer: model verified", u8, "x", "\\x1b");
  add.key("a10_key_c1_control",
          "test.\xc2\x9b"
          "31m",
          u8, "x", "\\xc2");
}

void add_alignment(const CorpusAdder& add) {
  const auto aligned = [](uint32_t type, const std::string& bytes) {
    return with_key("general.alignment", type, bytes);
  };
  for (const uint32_t n : {0u, 1u, 2u, 3u, 4u, 7u, 24u, 33u, 48u, 131072u, 0x80000000u, 0xffffffffu})
    add.refused("a12_alignment_" + std::to_string(n), aligned(u32, le(n)), "general.alignment");
  add.refused("a12_alignment_u64_2^32", aligned(u64, le(uint64_t{1} << 32)), "general.alignment");
  add.refused("a12_alignment_u64_2^63", aligned(u64, le(uint64_t{1} << 63)), "general.alignment");
  add.refused("a12_alignment_i32", aligned(i32, le<int32_t>(32)), "general.alignment");
  add.refused("a12_alignment_negative", aligned(i32, le<int32_t>(-32)), "general.alignment");
  add.refused("a12_alignment_string", aligned(string, gguf_string("32")), "general.alignment");
  add.refused("a12_alignment_f32", aligned(f32, le(32.0f)), "general.alignment");
  add.refused("a12_alignment_bool", aligned(boolean, "\1"), "general.alignment");
  add.refused("a12_alignment_array", aligned(array, le<uint32_t>(u32) + le<uint64_t>(1) + le<uint32_t>(32)),
              "general.alignment");
  for (const uint32_t n : {8u, 16u, 64u, 4096u, 65536u}) {
    GgufWriter file = small_model();
    file.set_alignment(n);
    add.loads("a12_alignment_used_" + std::to_string(n), file.bytes());
  }
  add.loads("a12_alignment_u64_32", aligned(u64, le<uint64_t>(32)));
  GgufWriter lying = small_model();  // blocks of 32 * 34 bytes: 64-byte aligned, but not 4096
  lying.set_alignment(4096);
  lying.alignment = 32;
  add.refused("a12_alignment_says_4096_uses_32", lying.bytes());
}

void add_ends(const CorpusAdder& add) {
  const GgufImage good = small_model().image();
  const size_t size = good.bytes.size();
  for (const int percent : {1, 5, 10, 25, 50, 75, 90, 99})
    add.refused("a13_cut_at_" + std::to_string(percent) + "_percent", good.bytes.substr(0, size * percent / 100));
  for (const char* mark :
       {"key general.architecture type", "key general.architecture value", "key tokenizer.ggml.tokens value",
        "tensor token_embd.weight length", "tensor token_embd.weight n_dims", "tensor token_embd.weight type",
        "tensor output.weight offset", "infos end", "data", "tensor output.weight data"}) {
    std::string name = mark;
    std::replace(name.begin(), name.end(), ' ', '_');
    for (const int shift : {-1, 0, 1})
      add.refused("a13_cut_at_" + name +
                      (shift < 0   ? "_minus_1"
                       : shift > 0 ? "_plus_1"
                                   : ""),
                  good.bytes.substr(0, good.at(mark) + shift));
  }
  add.refused("a13_cut_last_byte", good.bytes.substr(0, good.at("tensor output.weight end") - 1), "output.weight");

  add.loads("a16_1_byte_after", good.bytes + "x");
  add.loads("a16_1_MiB_after", good.bytes + std::string(1 << 20, 'x'));
  add.loads("a16_zip_after", good.bytes + "PK\x05\x06" + std::string(18, '\0'));
  for (const uint32_t n : {2u, 3u, 65535u})
    add.key("a17_split_count_" + std::to_string(n) + "_alone", "split.count", u16, le(static_cast<uint16_t>(n)),
            "split.count");
  add.key("a17_split_no_1", "split.no", u16, le<uint16_t>(1), "split.no");
  add.key("a17_split_no_65535", "split.no", u16, le<uint16_t>(65535), "split.no");
  add.key("a17_split_count_string", "split.count", string, gguf_string("2"), "split.count");
  add.key("a17_split_count_negative", "split.count", i32, le<int32_t>(-2), "split.count");
  add.key("a17_split_count_2^31", "split.count", u32, le(0x80000000u), "split.count");
}

}  // namespace

void add_container_mutations(std::vector<MutatedFile>& out) {
  const CorpusAdder add{out};
  add_wrong_files(add);
  add_header(add);
  add_strings(add);
  add_value_types(add);
  add_keys(add);
  add_alignment(add);
  add_ends(add);
}

std::vector<MutatedFile> mutated_gguf_files() {
  std::vector<MutatedFile> out;
  add_container_mutations(out);
  add_tensor_mutations(out);
  add_meaning_mutations(out);
  return out;
}

size_t write_mutated_gguf_files(const std::string& folder) {
  const std::vector<MutatedFile> files = mutated_gguf_files();
  std::string list;
  for (const MutatedFile& file : files) {
    write_bytes(folder + "/" + file.name + ".gguf", file.bytes);
    list += file.name + "\t" + (file.must_refuse ? "1" : "0") + "\t" + (file.needs_config ? "1" : "0") + "\n";
  }
  write_bytes(folder + "/list.tsv", list);
  return files.size();
}

}  // namespace infer::test
