// The whole of an embedding: load, generate with a callback, print. Exit status 0 only when text was generated.
#include <infer.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const infer::Model model = infer::Model::load(argv[1]);
    infer::Engine engine(model);
    infer::Request request;
    request.prompt = "hello";
    request.max_tokens = 8;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    const infer::Result result = engine.generate(request, [](const infer::Token& token) {
      std::fwrite(token.text.data(), 1, token.text.size(), stdout);
      return true;
    });
    std::printf("\n%zu tokens\n", result.ids.size());
    return result.ids.size() == 8 ? 0 : 1;
  } catch (const infer::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.kind());
  }
}
