// Reading tokenizer_config.json; see template_folder.h.
#include "runtime/template_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "infer/error.h"
#include "runtime/mapped_file.h"

namespace infer {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{64} << 20;
constexpr int kMaxDepth = 64;

std::string read_small_file(const std::string& path) {
  const MappedFile file(path);
  if (file.size() > kMaxConfigBytes)
    throw Error(ErrorKind::bad_file, escaped(path), "too long", std::to_string(file.size()) + " bytes",
                std::to_string(kMaxConfigBytes));
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

json parse(const std::string& path, const std::string& text) {
  int deepest = 0;
  auto watch = [&](int depth, json::parse_event_t, json&) {
    deepest = std::max(deepest, depth);
    return true;
  };
  json value;
  try {
    value = json::parse(text, watch);
  } catch (const json::exception& error) {
    throw Error(ErrorKind::bad_file, escaped(path), "not JSON: " + escaped(error.what(), 300));
  }
  if (deepest > kMaxDepth) throw Error(ErrorKind::bad_file, escaped(path), "nested too deeply", "", "64 levels");
  if (!value.is_object()) throw Error(ErrorKind::bad_file, escaped(path), "wrong type", value.type_name(), "an object");
  return value;
}

// A token is a text, or an object that holds one as "content".
std::optional<std::string> token_text(const json& config, const char* key, const std::string& path) {
  if (!config.contains(key) || config[key].is_null()) return std::nullopt;
  const json& token = config[key];
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token["content"].is_string())
    return token["content"].get<std::string>();
  throw Error(ErrorKind::bad_file, escaped(path) + ": " + key, "wrong type", token.type_name(), "a string or null");
}

// A template is a text, or a list of named ones of which "default" is meant.
std::string template_text(const json& config, const std::string& path) {
  if (!config.contains("chat_template") || config["chat_template"].is_null()) return {};
  const json& value = config["chat_template"];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array())
    for (const json& one : value)
      if (one.is_object() && one.value("name", json()) == "default" && one.value("template", json()).is_string())
        return one["template"].get<std::string>();
  throw Error(ErrorKind::bad_file, escaped(path) + ": chat_template", "unusable", value.type_name(),
              "a string, or a list with one named \"default\"");
}

}  // namespace

bool is_folder(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

TemplateFolder read_template_folder(const std::string& path) {
  const std::string config_path = path + "/tokenizer_config.json", jinja_path = path + "/chat_template.jinja";
  const json config = parse(config_path, read_small_file(config_path));
  TemplateFolder folder;
  folder.bos = token_text(config, "bos_token", config_path);
  folder.eos = token_text(config, "eos_token", config_path);
  struct stat info = {};
  folder.chat_template =
      stat(jinja_path.c_str(), &info) == 0 ? read_small_file(jinja_path) : template_text(config, config_path);
  return folder;
}

}  // namespace infer
