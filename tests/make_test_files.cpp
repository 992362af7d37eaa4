// Writes the files that tests make for themselves, for tests that are programs of their own: scripts, client projects.
//   make_test_files model OUT.gguf [f32|f16|bf16|q8_0] [bpe|spm]    a tiny llama model that generates text
//   make_test_files corpus FOLDER                                   malformed files and list.tsv: name, must_refuse,
//   needs_config
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>

#include "tests/runtime/gguf_corpus.h"
#include "tests/tiny_model.h"

namespace {

int usage() {
  std::fprintf(stderr, "usage: make_test_files model OUT.gguf [f32|f16|bf16|q8_0] [bpe|spm] | corpus FOLDER\n");
  return 2;
}

int make_model(int argc, char** argv) {
  using infer::DType;
  const std::map<std::string, DType> types = {
      {"f32", DType::F32}, {"f16", DType::F16}, {"bf16", DType::BF16}, {"q8_0", DType::Q8_0}};
  infer::test::TinyModel model;
  for (int i = 3; i < argc; ++i) {
    const std::string word = argv[i];
    if (const auto type = types.find(word); type != types.end()) {
      model.weights = type->second;
    } else if (word == "bpe" || word == "spm") {
      model.spm = word == "spm";
    } else {
      return usage();
    }
  }
  infer::test::write_tiny_model(argv[2], model);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc >= 3 && std::strcmp(argv[1], "model") == 0) return make_model(argc, argv);
  if (argc == 3 && std::strcmp(argv[1], "corpus") == 0) {
    std::printf("%zu files\n", infer::test::write_mutated_gguf_files(argv[2]));
    return 0;
  }
  return usage();
} catch (const std::exception& e) {
  std::fprintf(stderr, "make_test_files: %s\n", e.what());
  return 1;
}
