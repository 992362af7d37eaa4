// The functions every template can call: range, dict, namespace, joiner, cycler, raise_exception, strftime_now.
#include <ctime>

#include "runtime/jinja/builtins.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/print.h"

namespace infer::jinja {

namespace {

constexpr int64_t kMaxRange = 100'000;  ///< that of Jinja2's sandbox

Value range(Interpreter& in, const Value&, Arguments& arguments) {
  const auto [first, second, third] = bind(arguments, "range", {"start", "stop", "step"});
  required(first, "range", "stop");
  const Integer start = second ? to_integer(*first, "range() argument") : 0;
  const Integer stop = to_integer(second ? *second : *first, "range() argument");
  const Integer step = third ? to_integer(*third, "range() argument") : 1;
  if (step == 0) throw Failure("range() arg 3 must not be zero");
  for (const Integer bound : {start, stop, step}) {
    if (bound > INT64_MAX || bound < INT64_MIN) throw Failure("range() arguments are limited to 64 bits");
  }
  const Integer distance = step > 0 ? stop - start : start - stop;
  const Integer stride = step > 0 ? step : -step;
  const Integer count = distance > 0 ? (distance + stride - 1) / stride : 0;
  if (count > kMaxRange) throw Failure("Range too big: more than " + std::to_string(kMaxRange) + " items");
  Values items;
  items.reserve(static_cast<size_t>(count));
  for (Integer i = 0; i < count; ++i) items.push_back(Value(start + i * step));
  return in.heap().sequence(SequenceKind::range, std::move(items));
}

/// The entries that dict(...) and namespace(...) are given: a mapping or pairs, and keywords.
Entries entries_of(Interpreter& in, Arguments& arguments) {
  Heap& heap = in.heap();
  if (arguments.positional.size() > 1) throw Failure("dict expected at most 1 argument");
  Entries entries;
  if (!arguments.positional.empty()) {
    const Value& given = arguments.positional[0];
    check_defined(given);
    if (given.is(Kind::dict)) {
      entries = given.dict().entries;
    } else {
      for (const Value& pair : items_of(heap, given)) {
        const Values parts = items_of(heap, pair);
        if (parts.size() != 2) throw Failure("dictionary update sequence elements must be pairs");
        entries.emplace_back(parts[0], parts[1]);
      }
    }
  }
  for (auto& [name, value] : arguments.named) entries.emplace_back(heap.text(name), std::move(value));
  return entries;
}

Value make_dict(Interpreter& in, const Value&, Arguments& arguments) {
  return in.heap().dict(entries_of(in, arguments));
}

Value make_namespace(Interpreter& in, const Value&, Arguments& arguments) {
  Value space = in.heap().space();
  for (auto& [name, value] : entries_of(in, arguments)) {
    const Text& text = text_argument(name, "namespace");
    if (text.view().starts_with('_')) throw Failure("a namespace cannot hold names that begin with '_'");
    space.space().set(in.heap(), text.view(), std::move(value));
  }
  return space;
}

Value raise_exception(Interpreter& in, const Value&, Arguments& arguments) {
  const auto [message] = bind(arguments, "raise_exception", {"message"});
  throw Failure(to_text(in.heap(), required(message, "raise_exception", "message")).bytes);
}

Value strftime_now(Interpreter& in, const Value&, Arguments& arguments) {
  const auto [format] = bind(arguments, "strftime_now", {"format"});
  const std::string& pattern = text_argument(required(format, "strftime_now", "format"), "strftime_now").bytes;
  if (in.date()) return in.heap().text(*in.date());
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[1000];
  // The extra blank tells an empty date from one that does not fit.
  const size_t size = std::strftime(buffer, sizeof(buffer), (pattern + ' ').c_str(), &local);
  if (size == 0) throw Failure("strftime_now() makes at most 1000 characters");
  return in.heap().text(std::string_view(buffer, size - 1));
}

/// Nothing on its first call, then the separator.
class Joiner : public Callable {
 public:
  Joiner(Heap& heap, Value separator)
      : Callable(heap, sizeof(Joiner), separator.depth() + 1), separator_(std::move(separator)) {}
  Value call(Interpreter& in, Arguments& arguments) override {
    bind_nothing(arguments, "joiner");
    return std::exchange(used_, true) ? separator_ : in.heap().text(Text());
  }
  std::string description() const override { return "<Joiner>"; }
  const char* type_name() const override { return "Joiner"; }

 private:
  const Value separator_;
  bool used_ = false;
};

/// Its items in turn.
class Cycler : public Callable {
 public:
  Cycler(Heap& heap, Value items) : Callable(heap, sizeof(Cycler), items.depth() + 1), items_(std::move(items)) {}
  Value call(Interpreter&, Arguments&) override { throw Failure("'Cycler' object is not callable"); }
  std::string description() const override { return "<Cycler>"; }
  const char* type_name() const override { return "Cycler"; }

  std::optional<Value> attribute(Interpreter& in, std::string_view name) override {
    if (name == "current") return items_.sequence().items[at_];
    if (name == "items") return items_;
    if (name == "pos") return integer_value(static_cast<int64_t>(at_));
    if (name != "next" && name != "reset") return std::nullopt;
    const bool next = name == "next";
    return bind_method(in.heap(), Value(Kind::callable, this), next ? step<1> : step<0>, name);
  }

 private:
  template <size_t kStep>
  static Value step(Interpreter&, const Value& self, Arguments& arguments) {
    bind_nothing(arguments, "cycler method");
    Cycler& cycler = static_cast<Cycler&>(self.callable());
    const Values& items = cycler.items_.sequence().items;
    const Value current = items[cycler.at_];
    cycler.at_ = kStep == 0 ? 0 : (cycler.at_ + 1) % items.size();
    return kStep == 0 ? Value() : current;
  }

  const Value items_;
  size_t at_ = 0;
};

Value make_joiner(Interpreter& in, const Value&, Arguments& arguments) {
  const auto [separator] = bind(arguments, "joiner", {"sep"});
  return in.heap().make<Joiner>(separator ? *separator : in.heap().text(", "));
}

Value make_cycler(Interpreter& in, const Value&, Arguments& arguments) {
  if (arguments.positional.empty() || !arguments.named.empty()) throw Failure("cycler() needs at least one item");
  return in.heap().make<Cycler>(in.heap().tuple(arguments.positional));
}

class GlobalFunction : public Callable {
 public:
  GlobalFunction(Heap& heap, const Row<Method>& row) : Callable(heap, sizeof(GlobalFunction), 0), row_(row) {}
  Value call(Interpreter& in, Arguments& arguments) override { return row_.function(in, Value(), arguments); }
  std::string description() const override { return "<function " + std::string(row_.name) + ">"; }

 private:
  const Row<Method>& row_;
};

constexpr Row<Method> kGlobals[] = {
    {"range", range},
    {"dict", make_dict},
    {"namespace", make_namespace},
    {"joiner", make_joiner},
    {"cycler", make_cycler},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

}  // namespace

std::optional<Value> make_global(Heap& heap, std::string_view name) {
  for (const auto& row : kGlobals) {
    if (row.name == name) return heap.make<GlobalFunction>(row);
  }
  return std::nullopt;
}

}  // namespace infer::jinja
