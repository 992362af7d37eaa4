// The chat template of a Hugging Face folder, read through the public Model.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "infer.h"
#include "tests/catch.h"

using namespace infer;

namespace {

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("infer_folder_" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path / name) << text; }
  Model load() const {
    LoadOptions options;
    options.vocab_only = true;
    return Model::load(path.string(), options);
  }
};

const std::string kMessages = R"([{"role": "user", "content": "hi"}])";

}  // namespace

TEST_CASE("a folder with tokenizer_config.json renders its template with its own BOS and EOS") {
  Folder folder;
  folder.write("tokenizer_config.json", R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>",
    "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}"})");
  CHECK(folder.load().apply_template_json(kMessages).text == "<s>[hi]</s>");

  folder.write("chat_template.jinja", "{{ messages[0].role }}");
  CHECK(folder.load().apply_template_json(kMessages).text == "user");
}

TEST_CASE("a list of templates means the one named default, and a missing token stays undefined") {
  Folder folder;
  folder.write("tokenizer_config.json", R"({"bos_token": null, "chat_template": [{"name": "tool_use", "template": "no"},
    {"name": "default", "template": "{{ bos_token is defined }}"}]})");
  CHECK(folder.load().apply_template_json(kMessages).text == "False");
}

TEST_CASE("a malformed tokenizer_config.json is refused by path and field") {
  Folder folder;
  const auto refused = [&](const std::string& text, const std::string& expect) {
    folder.write("tokenizer_config.json", text);
    try {
      folder.load();
      FAIL("accepted " + text);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::bad_file);
      CHECK_THAT(e.what(), Catch::Matchers::Contains(expect));
    }
  };
  refused("[1]", "an object");
  refused("{\"bos_token\": 3}", "bos_token");
  refused("{\"chat_template\": 3}", "chat_template");
  refused("{\"chat_template\": [{\"name\": \"x\", \"template\": \"y\"}]}", "default");
  refused("{\"a\": " + std::string(10000, '[') + std::string(10000, ']') + "}", "nested");
  refused("{\"a\": ", "not JSON");
}

TEST_CASE("a folder makes no engine") {
  Folder folder;
  folder.write("tokenizer_config.json", "{}");
  CHECK_THROWS_AS(Model::load(folder.path.string()), Error);
  CHECK_THROWS_AS(Engine(folder.load()), Error);
}
