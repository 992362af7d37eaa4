// Conversion with counted depth; what is too deep, too long or too large fails in the heap.
#include "runtime/jinja/json_value.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace infer::jinja {

using Json = nlohmann::ordered_json;

static bool is_word(std::string_view text) {
  return text.size() <= 32 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
         });
}

static Value convert(Heap& heap, const Json& json, std::string_view key, int depth) {
  if (depth > kMaxNesting) throw Failure("the input is nested deeper than " + std::to_string(kMaxNesting) + " levels");
  heap.step();
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value(json.get<bool>());
    case Json::value_t::number_integer:
      return Value(static_cast<Integer>(json.get<int64_t>()));
    case Json::value_t::number_unsigned:
      return Value(static_cast<Integer>(json.get<uint64_t>()));
    case Json::value_t::number_float:
      return Value(json.get<double>());
    case Json::value_t::string: {
      const std::string& text = json.get_ref<const std::string&>();
      return heap.text(key == "role" && is_word(text) ? Text(text) : Text::from_user(text));
    }
    case Json::value_t::array: {
      Values items;
      heap.check_items(json.size());
      for (const Json& item : json) items.push_back(convert(heap, item, {}, depth + 1));
      return heap.list(std::move(items));
    }
    case Json::value_t::object: {
      Entries entries;
      heap.check_items(json.size());
      for (const auto& [name, value] : json.items()) {
        entries.emplace_back(heap.text(Text::from_user(name)), convert(heap, value, name, depth + 1));
      }
      return heap.dict(std::move(entries), true);
    }
    default:
      return Value();
  }
}

Value from_json(Heap& heap, const nlohmann::ordered_json& json) { return convert(heap, json, {}, 1); }

}  // namespace infer::jinja
