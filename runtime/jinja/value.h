// The values of the template language: Python's, as far as a template can tell. Containers never change after they are
// built (transformers' sandbox refuses mutation), so only a namespace can point at itself.
// Every object is counted by a Heap, which also holds the fuel: the one idea is that time, memory and nesting are all
// bounded by counters here, never by the machine. Knows no syntax and no functions of the language.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/jinja/text.h"

namespace infer::jinja {

/// Wide enough for every integer of a JSON file and their sums; more is an error, not a wrong number.
using Integer = __int128;

/// An error inside a template. Whoever started the template adds where it happened.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int64_t kMaxSteps = 10'000'000;              ///< statements and expressions of one render
constexpr int64_t kBytesPerStep = 32;                  ///< bytes copied or compared that cost as much as a step
constexpr size_t kMaxTextBytes = size_t{16} << 20;     ///< one string, and the output
constexpr int64_t kMaxLiveBytes = int64_t{128} << 20;  ///< all values alive at one time
constexpr size_t kMaxItems = 500'000;                  ///< one list
constexpr int kMaxNesting = 100;                       ///< lists within lists

enum class Kind : uint8_t { undefined, none, boolean, integer, number, text, sequence, dict, space, callable };
enum class SequenceKind : uint8_t { list, tuple, group, range, keys, values, items, generator };

class Heap;
class Interpreter;

class Object {
 public:
  Object(Heap& heap, size_t bytes, int depth);
  virtual ~Object();
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  int depth() const { return depth_; }

 private:
  friend class Value;
  Heap& heap_;
  size_t bytes_;
  uint32_t references_ = 0;
  int depth_;
};

class TextObject;
class Sequence;
class Dict;
class Namespace;
class Callable;
class UndefinedObject;

class Value {
 public:
  Value() = default;  ///< None
  explicit Value(bool b) : kind_(Kind::boolean) { data_.integer = b; }
  explicit Value(Integer i) : kind_(Kind::integer) { data_.integer = i; }
  explicit Value(double d) : kind_(Kind::number) { data_.number = d; }
  Value(Kind kind, Object* object) : kind_(kind) {
    data_.object = object;
    ++object->references_;
  }
  Value(const Value& other) : kind_(other.kind_), data_(other.data_) {
    if (is_object()) ++data_.object->references_;
  }
  Value(Value&& other) noexcept : kind_(other.kind_), data_(other.data_) { other.kind_ = Kind::none; }
  Value& operator=(Value other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Value() {
    if (is_object() && --data_.object->references_ == 0) delete data_.object;
  }

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == Kind::undefined; }
  bool is_none() const { return kind_ == Kind::none; }
  bool is_text() const { return kind_ == Kind::text; }
  bool is_integral() const { return kind_ == Kind::integer || kind_ == Kind::boolean; }
  bool is_numeric() const { return is_integral() || kind_ == Kind::number; }
  bool is_sequence(SequenceKind kind) const;

  bool boolean() const { return data_.integer != 0; }
  Integer integer() const { return data_.integer; }  ///< of a boolean or an integer
  double number() const { return kind_ == Kind::number ? data_.number : static_cast<double>(data_.integer); }
  const Text& text() const;
  Sequence& sequence() const;
  Dict& dict() const;
  Namespace& space() const;
  Callable& callable() const;
  const UndefinedObject& undefined() const;
  const Object* identity() const { return is_object() ? data_.object : nullptr; }
  int depth() const { return is_object() ? data_.object->depth() : 0; }

 private:
  bool is_object() const { return kind_ == Kind::undefined || kind_ >= Kind::text; }

  Kind kind_ = Kind::none;
  union {
    Integer integer = 0;
    double number;
    Object* object;
  } data_;
};

using Values = std::vector<Value>;
using Entries = std::vector<std::pair<Value, Value>>;

class TextObject : public Object {
 public:
  TextObject(Heap& heap, Text t)
      : Object(heap, sizeof(TextObject) + t.bytes.capacity() + t.user.capacity() * sizeof(Span), 0),
        text(std::move(t)) {}
  const Text text;
};

/// What a missing name or attribute gives: empty when printed, an error when used.
class UndefinedObject : public Object {
 public:
  UndefinedObject(Heap& heap, std::string m)
      : Object(heap, sizeof(UndefinedObject) + m.capacity(), 0), message(std::move(m)) {}
  const std::string message;  ///< of the error that using it gives
};

class Sequence : public Object {
 public:
  Sequence(Heap& heap, SequenceKind kind, Values items, int depth)
      : Object(heap, sizeof(Sequence) + items.capacity() * sizeof(Value), depth), kind(kind), items(std::move(items)) {}
  const SequenceKind kind;
  Values items;
  size_t consumed = 0;  ///< a generator gives each item once
};

/// Keys in the order they were given. Keys are texts, numbers, None or tuples of them.
class Dict : public Object {
 public:
  Dict(Heap& heap, Entries e, int depth)
      : Object(heap, sizeof(Dict) + e.capacity() * sizeof(Entries::value_type), depth), entries(std::move(e)) {}
  const Entries entries;
  const Value* find(Heap& heap, const Value& key) const;
  const Value* find(Heap& heap, std::string_view key) const;

 private:
  void build_index() const;
  mutable std::unordered_map<std::string_view, size_t> index_;  ///< text keys of a large dict
};

/// The one value that can be assigned to: {% set ns.name = ... %}.
class Namespace : public Object {
 public:
  explicit Namespace(Heap& heap) : Object(heap, sizeof(Namespace), 0) {}
  const Value* find(std::string_view name) const;
  void set(Heap& heap, std::string_view name, Value value);
  std::vector<std::pair<std::string, Value>> attributes;
};

/// The arguments of a call, filter or test.
struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

class Callable : public Object {
 public:
  using Object::Object;
  virtual Value call(Interpreter& interpreter, Arguments& arguments) = 0;
  /// The attributes that the object has in Python, as far as templates use them.
  virtual std::optional<Value> attribute(Interpreter&, std::string_view) { return std::nullopt; }
  virtual std::string description() const = 0;
  virtual const char* type_name() const { return "function"; }
};

/// Makes objects and counts what they cost.
class Heap {
 public:
  Heap() = default;
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;
  ~Heap();

  /// Spends fuel; throws Failure when there is none left.
  void step(int64_t steps = 1) { spend(steps * kBytesPerStep); }
  void work(size_t bytes) { spend(static_cast<int64_t>(bytes)); }
  /// Counts memory that is alive; throws when that is too much.
  void hold(size_t bytes) {
    live_bytes_ += static_cast<int64_t>(bytes);
    if (live_bytes_ > kMaxLiveBytes) fail_memory();
  }
  void release(size_t bytes) { live_bytes_ -= static_cast<int64_t>(bytes); }
  /// Throws unless a list of this many items may be built.
  void check_items(size_t items);

  Value text(Text t);
  Value text(std::string_view written) { return text(Text(written)); }
  Value list(Values items) { return sequence(SequenceKind::list, std::move(items)); }
  Value tuple(Values items) { return sequence(SequenceKind::tuple, std::move(items)); }
  Value sequence(SequenceKind kind, Values items);
  /// Later entries replace earlier ones of the same key, in the place of the first.
  Value dict(Entries entries, bool unique_keys = false);
  Value space();
  Value undefined(std::string message);
  template <class T, class... A>
  Value make(A&&... arguments) {
    return Value(Kind::callable, new T(*this, std::forward<A>(arguments)...));
  }

 private:
  void spend(int64_t bytes) {
    fuel_ -= bytes;
    if (fuel_ < 0) fail_fuel();
  }
  [[noreturn]] void fail_fuel();
  [[noreturn]] void fail_memory();

  int64_t fuel_ = kMaxSteps * kBytesPerStep;
  int64_t live_bytes_ = 0;
  Values spaces_;  ///< kept to the end: cycles of namespaces are cut in one place
};

/// Grows a text under the limits of a heap.
class TextBuilder {
 public:
  explicit TextBuilder(Heap& heap) : heap_(heap) {}
  TextBuilder(const TextBuilder&) = delete;
  TextBuilder& operator=(const TextBuilder&) = delete;
  ~TextBuilder() { heap_.release(held_); }

  void add(std::string_view written) {
    reserve(written.size());
    text_.bytes.append(written);
    account();
  }
  void add(std::string_view bytes, bool from_user);
  void add(const Text& text) { add(text, 0, text.size()); }
  void add(const Text& text, size_t begin, size_t end);
  void add_code_point(uint32_t code_point, bool from_user);
  void repeat(std::string_view written, Integer times);
  size_t size() const { return text_.size(); }
  const Text& text() const { return text_; }
  Text take();
  Heap& heap() { return heap_; }

 private:
  void reserve(size_t more);
  void account();

  Heap& heap_;
  Text text_;
  size_t held_ = 0;
};

inline const Text& Value::text() const { return static_cast<const TextObject*>(data_.object)->text; }
inline Sequence& Value::sequence() const { return *static_cast<Sequence*>(data_.object); }
inline Dict& Value::dict() const { return *static_cast<Dict*>(data_.object); }
inline Namespace& Value::space() const { return *static_cast<Namespace*>(data_.object); }
inline Callable& Value::callable() const { return *static_cast<Callable*>(data_.object); }
inline const UndefinedObject& Value::undefined() const { return *static_cast<UndefinedObject*>(data_.object); }
inline bool Value::is_sequence(SequenceKind kind) const { return kind_ == Kind::sequence && sequence().kind == kind; }

}  // namespace infer::jinja
