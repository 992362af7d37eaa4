// The public interface when something is wrong: requests, options, models that lack something, damaged weights.
#include "tests/runtime/infer_api.h"

namespace infer_api_refusals_test {
using namespace infer;
using namespace infer::api_test;
using test::TinyModel;

TEST_CASE("api: models without template, with a broken one, and without tokenizer stay usable") {
  const File plain(TinyModel{.chat_template = false});
  const Model model = load(plain);
  CHECK_FALSE(model.info().has_chat_template);
  CHECK(error_of([&] {
          model.apply_template({{"user", "x"}});
        })
            .allowed()
            .find(Model::chat_template_names()[0]) != std::string::npos);

  test::GgufWriter broken = test::tiny_model();
  broken.text("tokenizer.chat_template", "{% for %}");
  const File broken_file(broken);
  CHECK(load(broken_file).info().warnings.size() == 1);

  test::GgufWriter mute = test::tiny_model();
  for (const char* key :
       {"tokens", "merges", "token_type", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token", "pre"})
    mute.remove(std::string("tokenizer.ggml.") + key);
  mute.text("tokenizer.ggml.model", "none");
  const File mute_file(mute);
  const Model silent = load(mute_file);
  CHECK(error_of([&] { silent.tokenize("x"); }).kind() == ErrorKind::usage);
  Engine engine(silent, small_options());
  CHECK(error_of([&] { engine.generate(text_request("x", 3)); }).kind() == ErrorKind::usage);
  Request request = text_request("", 3);
  request.ids = {1, 2, 3};
  const Result result = engine.generate(request);
  CHECK(result.ids.size() == 3);
  CHECK(result.text.empty());
}

TEST_CASE("api: more tokens than embedding rows are refused, fewer are never sampled beyond the list") {
  test::GgufWriter more = test::tiny_model();
  const size_t row_bytes = 64 * sizeof(float);
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    test::TensorSpec& tensor = more.find_tensor(name);
    tensor.dims[0] -= 1;
    tensor.data.resize(tensor.data.size() - row_bytes);
  }
  more.remove("llama.vocab_size");
  const File more_file(more);
  const Error error = error_of([&] { load(more_file); });
  CHECK(error.kind() == ErrorKind::bad_file);

  test::GgufWriter fewer = test::tiny_model();
  int64_t n_rows = 0;
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    test::TensorSpec& tensor = fewer.find_tensor(name);
    n_rows = tensor.dims[0] += 40;
    for (size_t i = 0; i < 40 * 64; ++i) tensor.data += test::le(1.0f);
  }
  fewer.remove("llama.vocab_size");
  const File fewer_file(fewer);
  const Model model = load(fewer_file);
  CHECK(model.vocab() == n_rows);
  Engine engine(model, small_options());
  Request request = text_request("hello", 200);
  request.sampling.temperature = 100;
  for (TokenId id : engine.generate(request).ids) CHECK(id < n_rows - 40);
}

TEST_CASE("api: wrong requests are refused by field, and the engine goes on") {
  const File file;
  const Model model = load(file);
  Engine engine(model, small_options());
  const auto vocab = static_cast<TokenId>(model.vocab());
  auto field_of = [&](auto change) {
    Request request = text_request("hello", 2);
    change(request);
    const Error error = error_of([&] { engine.generate(request); });
    CHECK(error.kind() == ErrorKind::usage);
    return error.where();
  };
  CHECK(field_of([](Request& r) { r.prompt = ""; }) == "prompt");
  CHECK(field_of([](Request& r) { r.ids = {-1}; }) == "prompt");
  CHECK(field_of([&](Request& r) { r.ids = {1, vocab}; }) == "prompt");
  CHECK(field_of([](Request& r) { r.ids = std::vector<TokenId>(257, 1); }) == "prompt");
  CHECK(field_of([](Request& r) { r.max_tokens = -2; }) == "max_tokens");
  CHECK(field_of([](Request& r) { r.n_top_logprobs = -1; }) == "n_top_logprobs");
  CHECK(field_of([](Request& r) { r.n_top_logprobs = 1001; }) == "n_top_logprobs");
  CHECK(field_of([](Request& r) { r.stop = {""}; }) == "stop");
  CHECK(field_of([&](Request& r) { r.stop_ids = {vocab}; }) == "stop_ids");
  CHECK(field_of([&](Request& r) { r.sampling.logit_bias = {{vocab, 1.0f}}; }) == "logit_bias");
  CHECK(field_of([](Request& r) { r.sampling.temperature = kNan; }) == "temperature");
  CHECK(field_of([](Request& r) { r.sampling.top_p = 2; }) == "top_p");
  for (int64_t first : {1, 100})
    CHECK(error_of([&] { engine.logits(std::vector<TokenId>{1}, first, nullptr); }).kind() == ErrorKind::usage);
  CHECK(error_of([&] { engine.logits({}, -1, nullptr); }).kind() == ErrorKind::usage);
  CHECK(engine.generate(text_request("hello", 2)).ids.size() == 2);
  CHECK_FALSE(engine.step());
}

TEST_CASE("api: wrong options are refused by name") {
  const File file;
  LoadOptions load_options;
  load_options.device = "abacus";
  CHECK(error_of([&] { Model::load(file.path, load_options); }).kind() == ErrorKind::usage);
  CHECK(error_of([&] { Model::load(file.path + ".missing"); }).kind() == ErrorKind::run);
  const Model model = load(file);
  auto field_of = [&](auto change) {
    EngineOptions options = small_options();
    change(options);
    const Error error = error_of([&] { Engine engine(model, options); });
    CHECK(error.kind() == ErrorKind::usage);
    return error.where();
  };
  CHECK(field_of([](EngineOptions& o) { o.n_ctx = -1; }) == "n_ctx");
  CHECK(field_of([](EngineOptions& o) { o.n_ctx = int64_t{1} << 40; }) == "n_ctx");
  CHECK(field_of([](EngineOptions& o) { o.n_seqs = 0; }) == "n_seqs");
  CHECK(field_of([](EngineOptions& o) { o.n_batch = 0; }) == "n_batch");
  CHECK(field_of([](EngineOptions& o) { o.n_ubatch = -5; }) == "n_ubatch");
  CHECK(field_of([](EngineOptions& o) { o.n_threads = -1; }) == "n_threads");
  CHECK(field_of([](EngineOptions& o) { o.k_type = "q5_0"; }) == "k_type");
  CHECK(field_of([](EngineOptions& o) { o.v_type = "F16"; }) == "v_type");
  CHECK(field_of([](EngineOptions& o) { o.n_pool = 255; }) == "n_pool");
  CHECK(field_of([](EngineOptions& o) { o.mode = "warp"; }) == "mode");
  CHECK(field_of([](EngineOptions& o) { o.act = "fp8"; }) == "act");
  CHECK(field_of([](EngineOptions& o) { o.act = "bf16"; }) == "act");  // the reference computes in float32
  EngineOptions options;
  options.n_ctx = 1 << 24;  // times 1024 sequences: more than any machine has
  options.n_seqs = 60;
  const Error error = error_of([&] { Engine engine(model, options); });
  CHECK(error.kind() == ErrorKind::does_not_fit);
  CHECK(error.allowed().find("at most") != std::string::npos);
}

TEST_CASE("api: NaN and infinity among weights end the answer and name the layer they came from") {
  struct Case {
    const char* tensor;
    const char* place;
  };
  for (const Case& c : {Case{"blk.0.attn_norm.weight", "layer 0"}, Case{"blk.1.ffn_norm.weight", "layer 1, stage ffn"},
                        Case{"blk.1.attn_output.weight", "layer 1, stage attn_out"},
                        Case{"output_norm.weight", "the output head"}, Case{"output.weight", "the output head"}})
    for (float bad : {kNan, kInfinity})
      for (const std::string device : {"ref", "auto"}) {
        INFO(c.tensor << " " << bad << " " << device);
        test::GgufWriter writer = test::tiny_model();
        put_float(writer.find_tensor(c.tensor).data, 5, bad);
        const File file(writer);
        const Model model = load(file, device);
        Engine engine(model, small_options());
        const Result result = engine.generate(text_request("hello the world", 5));
        CHECK(result.reason == FinishReason::error);
        CHECK(result.ids.empty());
        CHECK(result.error.find(c.place) != std::string::npos);
        CHECK(engine.stats().n_cached_pages == 0);
        CHECK(error_of([&] { engine.logits(model.tokenize("hello"), 0, nullptr); }).kind() == ErrorKind::run);
        LoadOptions options;
        options.device = device;
        options.check_tensors = true;
        const Error error = error_of([&] { Model::load(file.path, options); });
        CHECK(error.kind() == ErrorKind::bad_file);
        CHECK(std::string(error.what()).find(c.tensor) != std::string::npos);
      }
}

TEST_CASE("api: one poisoned request fails, the others of its batch do not notice") {
  for (const std::string device : {"ref", "auto"}) {
    test::GgufWriter writer = test::tiny_model();
    const size_t poison = 70;  // only who uses this token meets the NaN
    put_float(writer.find_tensor("token_embd.weight").data, poison * 64 + 3, kNan);
    const File file(writer);
    const Model model = load(file, device);
    EngineOptions options = small_options();
    options.n_seqs = 4;
    Engine engine(model, options);
    auto request = [&](int i, bool poisoned) {
      Request r = text_request("", 20);
      for (TokenId k = 0; k < 40; ++k) r.ids.push_back((k * 3 + i) % 60);
      if (poisoned) r.ids[20] = poison;
      r.sampling.seed = i;
      r.sampling.logit_bias = {{static_cast<TokenId>(poison), -kInfinity}};
      return r;
    };
    std::vector<std::vector<TokenId>> alone;
    for (int i = 0; i < 4; ++i)
      if (i != 2) alone.push_back(engine.generate(request(i, false)).ids);
    engine.clear_cache();
    std::vector<std::vector<TokenId>> together;
    std::string error;
    for (int i = 0; i < 4; ++i)
      engine.submit(request(i, i == 2), nullptr, [&, i](const Result& r) {
        if (i == 2)
          error = r.error;
        else
          together.push_back(r.ids);
      });
    while (engine.step()) {
    }
    CHECK(together == alone);
    CHECK(error.find("the token embedding") != std::string::npos);
    // What the failed one left in memory harms nobody who gets its pages.
    Request after = request(2, false);
    after.reuse_prefix = false;
    CHECK(engine.generate(after).reason == FinishReason::length);
    CHECK(engine.stats().n_free_pages + engine.stats().n_cached_pages == engine.stats().n_pages);
  }
}

TEST_CASE("api: when bias leaves no token the request ends with an error") {
  const File file;
  const Model model = load(file);
  Engine engine(model, small_options());
  Request request = text_request("hello", 5);
  for (TokenId id = 0; id < model.vocab(); ++id) request.sampling.logit_bias.emplace_back(id, -kInfinity);
  const Result result = engine.generate(request);
  CHECK(result.reason == FinishReason::error);
  CHECK(result.ids.empty());
  CHECK(engine.generate(text_request("hello", 5)).reason == FinishReason::length);
}

}  // namespace infer_api_refusals_test
