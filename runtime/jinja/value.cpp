// Objects, the heap that counts them, and the builder of texts.
#include "runtime/jinja/value.h"

#include <algorithm>

#include "runtime/jinja/operators.h"

namespace infer::jinja {

Object::Object(Heap& heap, size_t bytes, int depth) : heap_(heap), bytes_(bytes), depth_(depth) {
  if (depth > kMaxNesting) throw Failure("values are nested deeper than " + std::to_string(kMaxNesting));
  heap.hold(bytes);
}

Object::~Object() { heap_.release(bytes_); }

Heap::~Heap() {
  for (const Value& value : spaces_) value.space().attributes.clear();
}

void Heap::fail_fuel() { throw Failure("the template takes more than " + std::to_string(kMaxSteps) + " steps"); }

void Heap::fail_memory() {
  throw Failure("the values of the template take more than " + std::to_string(kMaxLiveBytes >> 20) + " MiB");
}

void Heap::check_items(size_t items) {
  if (items > kMaxItems) throw Failure("a list may have at most " + std::to_string(kMaxItems) + " items");
}

Value Heap::text(Text t) {
  if (t.size() > kMaxTextBytes) throw Failure("a string may have at most 16 MiB");
  return Value(Kind::text, new TextObject(*this, std::move(t)));
}

static int deepest(const Values& values) {
  int depth = 0;
  for (const Value& value : values) depth = std::max(depth, value.depth());
  return depth;
}

Value Heap::sequence(SequenceKind kind, Values items) {
  check_items(items.size());
  work(items.size() * sizeof(Value));
  const int depth = 1 + deepest(items);
  return Value(Kind::sequence, new Sequence(*this, kind, std::move(items), depth));
}

Value Heap::dict(Entries entries, bool unique_keys) {
  check_items(entries.size());
  work(entries.size() * 2 * sizeof(Value));
  if (!unique_keys) {
    Entries kept;
    for (auto& entry : entries) {
      check_hashable(entry.first);
      auto same = std::find_if(kept.begin(), kept.end(), [&](auto& k) { return equal(*this, k.first, entry.first); });
      if (same == kept.end()) {
        kept.push_back(std::move(entry));
      } else {
        same->second = std::move(entry.second);
      }
    }
    entries = std::move(kept);
  }
  int depth = 0;
  for (const auto& [key, value] : entries) depth = std::max({depth, key.depth(), value.depth()});
  return Value(Kind::dict, new Dict(*this, std::move(entries), depth + 1));
}

Value Heap::space() {
  Value value(Kind::space, new Namespace(*this));
  hold(sizeof(Value));
  spaces_.push_back(value);
  return value;
}

Value Heap::undefined(std::string message) {
  return Value(Kind::undefined, new UndefinedObject(*this, std::move(message)));
}

constexpr size_t kIndexedEntries = 16;

void Dict::build_index() const {
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].first.is_text()) index_.emplace(entries[i].first.text().view(), i);
  }
}

const Value* Dict::find(Heap& heap, std::string_view key) const {
  if (entries.size() > kIndexedEntries) {
    if (index_.empty()) {
      heap.work(entries.size() * 64);
      build_index();
    }
    const auto found = index_.find(key);
    return found == index_.end() ? nullptr : &entries[found->second].second;
  }
  for (const auto& [name, value] : entries) {
    if (name.is_text() && name.text().view() == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(Heap& heap, const Value& key) const {
  if (key.is_text()) return find(heap, key.text().view());
  for (const auto& [name, value] : entries) {
    if (equal(heap, name, key)) return &value;
  }
  return nullptr;
}

const Value* Namespace::find(std::string_view name) const {
  for (const auto& [known, value] : attributes) {
    if (known == name) return &value;
  }
  return nullptr;
}

void Namespace::set(Heap& heap, std::string_view name, Value value) {
  for (auto& [known, old] : attributes) {
    if (known != name) continue;
    old = std::move(value);
    return;
  }
  // Never given back: attributes live as long as the heap.
  heap.hold(sizeof(attributes[0]) + name.size());
  heap.step(static_cast<int64_t>(attributes.size() / 8));
  attributes.emplace_back(name, std::move(value));
}

void TextBuilder::reserve(size_t more) {
  if (more > kMaxTextBytes - text_.size()) throw Failure("a string or the output would have more than 16 MiB");
  heap_.work(more);
}

void TextBuilder::account() {
  const size_t held = text_.bytes.capacity() + text_.user.capacity() * sizeof(Span);
  if (held <= held_) return;
  heap_.hold(held - held_);
  held_ = held;
}

void TextBuilder::add(std::string_view bytes, bool from_user) {
  const size_t begin = text_.size();
  add(bytes);
  if (from_user) text_.mark(begin, text_.size());
  account();
}

void TextBuilder::add(const Text& text, size_t begin, size_t end) {
  reserve(end - begin);
  text_.append(text, begin, end);
  account();
}

void TextBuilder::add_code_point(uint32_t code_point, bool from_user) {
  std::string bytes;
  append_code_point(bytes, code_point);
  add(bytes, from_user);
}

void TextBuilder::repeat(std::string_view written, Integer times) {
  if (times <= 0 || written.empty()) return;
  if (times > static_cast<Integer>(kMaxTextBytes)) reserve(kMaxTextBytes + 1);
  reserve(written.size() * static_cast<size_t>(times));
  for (Integer i = 0; i < times; ++i) text_.bytes.append(written);
  account();
}

Text TextBuilder::take() {
  heap_.release(held_);
  held_ = 0;
  Text done = std::move(text_);
  text_ = Text();
  return done;
}

}  // namespace infer::jinja
