// Looking inside: tokenize, detokenize, template, inspect, logits.
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/tiny_model.h"
#include "tests/tools/program.h"

using namespace infer::test;
using nlohmann::json;

namespace {

Outcome feed(std::vector<std::string> args, const std::string& input) {
  Call call;
  call.args = std::move(args);
  call.input = input;
  return run(call);
}

std::vector<float> floats(const std::string& path) {
  const std::string bytes = read_file(path);
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

}  // namespace

TEST_CASE("tokenize takes all bytes of stdin, and detokenize gives them back") {
  for (const std::string& model : {tiny_bpe(), tiny_spm()})
    for (const std::string& text : {std::string("hello world\n"), std::string("  two\n\n\ttabs \xF0\x9F\x98\x80"),
                                    std::string("a\0b", 3), std::string("\xff\xfe")}) {
      const Outcome ids = feed({"tokenize", "-m", model, "--stdin", "--ids", "--no-bos"}, text);
      INFO(ids.err);
      REQUIRE(ids.status == 0);
      REQUIRE(json::parse(ids.out).is_array());
      CHECK(lines_of(ids.out).size() == 1);
      if (!is_utf8(text)) continue;  // how invalid bytes come back is the tokenizer's business
      CHECK(run({"detokenize", "-m", model, "--ids", ids.out}).out == text);
    }
  const Outcome nothing = feed({"tokenize", "-m", tiny_bpe(), "--stdin", "--ids"}, "");
  CHECK(nothing.out == "[]\n");
}

TEST_CASE("BOS comes when the model wants one, and --no-bos leaves it out") {
  const json with = json::parse(run({"tokenize", "-m", tiny_spm(), "-p", "hello", "--ids"}).out);
  const json without = json::parse(run({"tokenize", "-m", tiny_spm(), "-p", "hello", "--ids", "--no-bos"}).out);
  REQUIRE(with.size() == without.size() + 1);
  CHECK(with[0] == 1);
  CHECK(with[1] == without[0]);
}

TEST_CASE("control tokens in a text are recognised, unless --no-parse-special is given") {
  const std::string text = "<|im_end|>";
  CHECK(run({"tokenize", "-m", tiny_bpe(), "-p", text, "--ids"}).out == "[2]\n");
  CHECK(json::parse(run({"tokenize", "-m", tiny_bpe(), "-p", text, "--ids", "--no-parse-special"}).out).size() > 5);
  CHECK(run({"detokenize", "-m", tiny_bpe(), "--ids", "2"}).out == text);
}

TEST_CASE("without --ids every token is shown with its text, escaped") {
  const Outcome o = run({"tokenize", "-m", tiny_bpe(), "-p", "hello\n\x1b[2J", "--show-count"});
  CHECK(contains(o.out, "-> 'hello'"));
  CHECK(contains(o.out, "-> '\\x0a'"));
  CHECK_FALSE(contains(o.out, "\x1b"));
  CHECK(contains(o.out, "6 tokens"));
}

TEST_CASE("JSON lines go in and out in order, with their own settings") {
  const std::string input =
      "{\"id\": 1, \"text\": \"hello\"}\n"
      "\n"
      "{\"id\": \"two\", \"text\": \"<|im_end|>\", \"parse_special\": true}\r\n"
      "{\"id\": null, \"text\": \"\\ud83d\\ude00\\u0000\", \"add_special\": false, \"parse_special\": false}";
  const Outcome o = feed({"tokenize", "-m", tiny_bpe(), "--jsonl"}, input);
  INFO(o.err);
  REQUIRE(o.status == 0);
  const auto lines = lines_of(o.out);
  REQUIRE(lines.size() == 3);
  CHECK(json::parse(lines[0])["id"] == 1);
  CHECK(json::parse(lines[1]) == json({{"id", "two"}, {"ids", {2}}}));
  CHECK(json::parse(lines[2])["ids"].size() == 5);
  const Outcome back = feed({"detokenize", "-m", tiny_bpe(), "--jsonl"}, o.out);
  REQUIRE(back.status == 0);
  const auto texts = lines_of(back.out);
  REQUIRE(texts.size() == 3);
  CHECK(json::parse(texts[0]) == json({{"id", 1}, {"text", "hello"}}));
  CHECK(json::parse(texts[2])["text"] == std::string("\xF0\x9F\x98\x80\0", 5));
}

TEST_CASE("a bad JSON line names its number, and what came before it was answered") {
  for (const char* bad : {"{", "[]", "{\"id\":1}", "{\"text\":5}", "{\"text\":\"x\",\"add_special\":\"yes\"}"}) {
    const Outcome o =
        feed({"tokenize", "-m", tiny_bpe(), "--jsonl"}, "{\"id\":1,\"text\":\"hello\"}\n" + std::string(bad));
    INFO(bad << ": " << o.err);
    CHECK(o.status == 1);
    CHECK(contains(o.err, "stdin, line 2"));
    CHECK(lines_of(o.err).size() == 1);
    CHECK(lines_of(o.out).size() == 1);
  }
}

TEST_CASE("ids that do not exist are refused") {
  for (const char* ids : {"999999", "-1", "x"}) {
    const Outcome o = run({"detokenize", "-m", tiny_bpe(), "--ids", ids});
    INFO(o.err);
    CHECK((o.status == 1 || o.status == 2));
    CHECK(lines_of(o.err).size() == 1);
  }
}

TEST_CASE("template prints the prompt exactly") {
  const std::string messages = write_file(
      "messages.json", "[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"x\"}]");
  const std::string body = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n";
  CHECK(run({"template", "-m", tiny_bpe(), "--messages", messages}).out == body + "<|im_start|>assistant\n");
  CHECK(run({"template", "-m", tiny_bpe(), "--messages", messages, "--no-generation-prompt"}).out == body);
  const std::string cases = write_file(
      "cases.json",
      "[{\"name\":\"a\",\"messages\":[]},{\"name\":\"b\",\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],"
      "\"variables\":{\"v\":[1,true,null]},\"tools\":[{\"n\":1}]}]");
  const std::string jinja = write_file(
      "show.jinja",
      "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ v }}{{ tools }}{{ strftime_now('%Y') }}"
      "{{ eos_token }}{{ add_generation_prompt }}\n");
  const Outcome o = run({"template", "--chat-template-file", jinja, "--messages", cases, "--case", "1", "--bos", "<b>",
                         "--eos", "<e>", "--date", "2024"});
  INFO(o.err);
  CHECK(o.out == "<b>c[1, True, None][{'n': 1}]2024<e>True");
  CHECK(run({"template", "--chat-template-file", jinja, "--messages", cases, "--case", "2"}).status == 2);
  CHECK(run({"template", "-m", tiny_bpe(), "--messages", messages, "--case", "1"}).status == 2);
  const Outcome source = run({"template", "-m", tiny_bpe(), "--source"});
  CHECK(source.out.rfind("{% for message", 0) == 0);
}

TEST_CASE("template and messages at fault are errors of one line") {
  const std::string good = write_file("good.json", "[{\"role\":\"user\",\"content\":\"x\"}]");
  const auto fails = [&](const std::string& jinja, const std::string& part) {
    const Outcome o = run({"template", "--chat-template-file", write_file("bad.jinja", jinja), "--messages", good});
    INFO(o.err);
    CHECK((o.status == 1 || o.status == 2));
    CHECK(o.out.empty());
    CHECK(contains(o.err, part));
    CHECK(lines_of(o.err).size() == 1);
    CHECK_FALSE(contains(o.err, "\x1b"));
  };
  fails("{{ raise_exception('no \x1b[31msuch role') }}", "such role");
  fails("{% if %}", "");
  fails("text {{ 1 / 0 }}", "");
  for (const char* bad : {"{", "{}", "7", "\xff"}) {
    const Outcome o = run({"template", "-m", tiny_bpe(), "--messages", write_file("bad.json", bad)});
    CHECK(o.status == 2);
    CHECK(contains(o.err, "bad.json"));
    CHECK(lines_of(o.err).size() == 1);
  }
}

TEST_CASE("inspect says what the file holds and that it will run") {
  const Outcome o = run({"inspect", tiny_bpe()});
  REQUIRE(o.status == 0);
  CHECK(o.err.empty());
  for (const char* part : {"GGUF", "general.architecture", "llama", "token_embd.weight", "... 7 more (--all)", "F32",
                           "will run on", "2 layers", "KV cache", "peak"}) {
    INFO(o.out << " lacks " << part);
    CHECK(contains(o.out, part));
  }
  const Outcome all = run({"inspect", tiny_bpe(), "--all"});
  CHECK(contains(all.out, "output.weight"));
  CHECK_FALSE(contains(all.out, "(--all)"));
}

TEST_CASE("inspect and plan say that a model has experts") {
  const std::string path = path_in_folder("experts.gguf");
  TinyModel model;
  model.n_experts = 5;
  write_tiny_model(path, model);
  CHECK(contains(run({"inspect", path, "--device", "cpu"}).out, "2 of 5 experts at a time"));
  const json j = json::parse(run({"inspect", path, "--device", "cpu", "--json"}).out);
  CHECK(j["n_experts"] == 5);
  CHECK(j["n_active"] == 2);
  CHECK(j["n_active_params"] < j["n_params"]);
  CHECK(contains(run({"plan", "-m", path, "--device", "cpu"}).out, "experts"));
  const Outcome gpu = run({"plan", "-m", path, "--vram", "24G"});
  CHECK(gpu.status == 3);  // for the size of its heads
}

TEST_CASE("inspect --json is JSON with sizes that add up") {
  const Outcome o = run({"inspect", tiny_bpe(), "--json", "-c", "128"});
  REQUIRE(o.status == 0);
  const json j = json::parse(o.out);
  CHECK(j["architecture"] == "llama");
  CHECK(j["runs"] == true);
  CHECK(j["refusal"] == "");
  CHECK(j["n_layers"] == 2);
  CHECK(j["dim"] == 64);
  CHECK(j["n_kv_heads"] == 2);
  CHECK(j["context_length"] == 512);
  CHECK(j["file_bytes"] == read_file(tiny_bpe()).size());
  CHECK(j["plan"]["n_ctx"] == 128);
  CHECK(j["plan"]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2);  // layers, K and V, heads, width, f16
  CHECK(j["metadata"]["general.name"] == "tiny test model");
  int64_t params = 0;
  size_t bytes = 0;
  for (const json& t : j["tensors"]) {
    int64_t n = 1;
    for (const json& d : t["shape"]) n *= d.get<int64_t>();
    params += n;
    bytes += t["bytes"].get<size_t>();
    CHECK(t["bytes"] == 4 * n);  // all F32
  }
  CHECK(j["n_params"] == params);
  CHECK(bytes < j["file_bytes"]);
}

TEST_CASE("inspect of a file that will not run shows it, says why, and ends with status 3") {
  GgufWriter file = tiny_model();
  file.text("general.architecture", "mamba");
  file.write(path_in_folder("mamba.gguf"));
  const Outcome o = run({"inspect", path_in_folder("mamba.gguf")});
  CHECK(o.status == 3);
  CHECK(contains(o.out, "token_embd.weight"));
  CHECK(contains(o.out, "will not run"));
  CHECK(contains(o.err, "mamba"));
  CHECK(lines_of(o.err).size() == 1);
  const Outcome as_json = run({"inspect", path_in_folder("mamba.gguf"), "--json"});
  CHECK(as_json.status == 3);
  CHECK(json::parse(as_json.out)["runs"] == false);
  CHECK(contains(json::parse(as_json.out)["refusal"].get<std::string>(), "mamba"));
}

TEST_CASE("logits are float32 rows, the last or all, alike on both devices") {
  const std::string ids = "5,6,7,8,9", out = path_in_folder("logits.f32"), all = path_in_folder("all.f32");
  REQUIRE(run({"logits", "-m", tiny_bpe(), "--ids", ids, "-o", out}).status == 0);
  const Outcome o = run({"logits", "-m", tiny_bpe(), "--ids", ids, "-o", all, "--all", "--device", "ref"});
  REQUIRE(o.status == 0);
  CHECK(o.out.empty());
  const std::vector<float> last = floats(out), rows = floats(all);
  REQUIRE(rows.size() == 5 * last.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < last.size(); ++i) {
    const double want = rows[4 * last.size() + i];
    error += (last[i] - want) * (last[i] - want), size += want * want;
  }
  CHECK(size > 0);
  CHECK(error / size < 1e-4);
}

TEST_CASE("metadata can be overridden, by known types only") {
  const Outcome o = run({"inspect", tiny_bpe(), "--json", "--override-kv", "general.name=str:other: name"});
  CHECK(json::parse(o.out)["name"] == "other: name");
  for (const char* bad :
       {"general.name", "general.name=other", "general.name=text:other", "=str:x", "llama.block_count=int:two"}) {
    const Outcome b = run({"inspect", tiny_bpe(), "--override-kv", bad});
    INFO(bad << ": " << b.err);
    CHECK(b.status == 2);
    CHECK(lines_of(b.err).size() == 1);
  }
}

TEST_CASE("llama.cpp's flags of rotation count for every command, and their unset values change nothing") {
  const auto logits = [](std::vector<std::string> more) {
    const std::string out = path_in_folder("rope.f32");
    std::vector<std::string> args = {"logits", "-m", tiny_bpe(), "--ids", "5,6,7,8,9", "-o", out};
    args.insert(args.end(), more.begin(), more.end());
    REQUIRE(run(args).status == 0);
    return read_file(out);
  };
  const std::string plain = logits({});
  CHECK(logits({"--rope-freq-base", "0", "--rope-freq-scale", "0", "--yarn-orig-ctx", "0", "--yarn-ext-factor", "-1",
                "--yarn-attn-factor", "-1", "--yarn-beta-fast", "-1", "--yarn-beta-slow", "-1"}) == plain);
  const std::string linear = logits({"--rope-scale", "4"});
  CHECK(linear != plain);
  CHECK(logits({"--rope-scaling", "linear", "--rope-freq-scale", "0.25"}) == linear);
  CHECK(logits({"--rope-scaling", "none", "--rope-freq-scale", "0.25"}) == plain);
  CHECK(logits({"--rope-scaling", "yarn", "--rope-scale", "4", "--yarn-ext-factor", "0"}) == linear);
  const std::string yarn = logits({"--rope-scaling", "yarn", "--rope-scale", "4"});
  CHECK(yarn != linear);
  for (const char* const flag : {"--yarn-attn-factor", "--yarn-beta-slow", "--yarn-beta-fast"})
    CHECK(logits({"--rope-scaling", "yarn", "--rope-scale", "4", flag, "0.05"}) != yarn);
  CHECK(logits({"--rope-freq-base", "20000"}) != plain);
  const std::string never = path_in_folder("rope.never");
  check_refusals({{{"run", tiny_bpe(), "-p", "x", "--rope-scaling", "longrope"}, 2, "none, linear, yarn, dynamic"},
                  {{"run", tiny_bpe(), "-p", "x", "--rope-freq-base", "0.5"}, 2, "--rope-freq-base"},
                  {{"bench", "-m", tiny_bpe(), "--rope-scale", "0"}, 2, "--rope-scale"},
                  {{"perplexity", "-m", tiny_bpe(), "-f", "x", "--yarn-ext-factor", "2"}, 2, "--yarn-ext-factor"}},
                 never);
}
