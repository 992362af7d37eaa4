// What bounds the template engine: steps, depth, memory, output; and that errors say where they happened.
#include <pthread.h>

#include <ctime>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "infer/error.h"
#include "runtime/chat_template.h"
#include "runtime/jinja/text.h"
#include "tests/catch.h"

using infer::ChatTemplate;

namespace {

std::string repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

std::string render(const std::string& source) {
  try {
    return ChatTemplate(source, "t").render({});
  } catch (const infer::Error& error) {
    return std::string("! ") + error.what();
  }
}

std::string failure(const std::string& source) {
  const std::string outcome = render(source);
  return outcome.rfind("! template t: ", 0) == 0 ? outcome.substr(14) : "no error: " + outcome.substr(0, 200);
}

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 2 << 20;  // the sanitizer's frames are several times as large
constexpr double kMaxSeconds = 20;
#else
constexpr size_t kStackBytes = 256 << 10;
constexpr double kMaxSeconds = 5;  // the worst was seen to take 0.8 on a busy core
#endif

void* call(void* function) {
  (*static_cast<std::function<void()>*>(function))();
  return nullptr;
}

/// Runs on a thread with a small stack; the processor seconds it took.
double on_small_stack(std::function<void()> work) {
  double seconds = 0;
  std::function<void()> timed = [&] {
    work();
    timespec spent{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
    seconds = static_cast<double>(spent.tv_sec) + 1e-9 * static_cast<double>(spent.tv_nsec);
  };
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread{};
  REQUIRE(pthread_create(&thread, &attributes, call, &timed) == 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  return seconds;
}

struct Bomb {
  std::string name, source, error;
};

std::vector<Bomb> bombs() {
  const std::string steps = "steps", deep = "nested deeper", big = "16 MiB", calls = "call each other deeper";
  return {
      {"a huge range", "{{ range(1000000000)|list }}", "Range too big"},
      {"the largest range", "{{ range(-9223372036854775807, 9223372036854775807) }}", "Range too big"},
      {"four nested loops",
       "{% set r = range(1000) %}" + repeat("{% for x in r %}", 4) + "a" + repeat("{% endfor %}", 4), ""},
      {"nested loops without output", repeat("{% for x in range(100000) %}", 3) + repeat("{% endfor %}", 3), steps},
      {"a string doubled again and again",
       "{% set ns = namespace(s='abcdefgh') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", big},
      {"a string doubled by ~",
       "{% set ns = namespace(s='abcdefgh') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", big},
      {"a repeated string", "{{ 'a' * 1000000000 }}", big},
      {"a repeated long string", "{{ ('a' * 1000000) * 1000000 }}", big},
      {"a repeated list", "{{ [0] * 1000000000 }}", "500000 items"},
      {"a list doubled again and again",
       "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
       "500000 items"},
      {"lists that share their parts",
       "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
       ""},
      {"comparing lists that share their parts",
       "{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}{% for i in range(60) %}{% set a.l = [a.l, a.l] %}"
       "{% set b.l = [b.l, b.l] %}{% endfor %}{{ a.l == b.l }}",
       steps},
      {"lists within lists",
       "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}",
       "nested deeper than 100"},
      {"methods within lists",
       "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l.count] %}{% endfor %}",
       "nested deeper than 100"},
      {"output without end", "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}", big},
      {"many large values",
       "{% set ns = namespace(l=[]) %}{% for i in range(100) %}{% set ns.l = ns.l + ['a' * 16000000 ~ i] %}{% endfor "
       "%}",
       "128 MiB"},
      {"captured output in nested macros",
       "{% macro m(n) %}{{ 'a' * 16000000 }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}", ""},
      {"many namespaces",
       "{% for i in range(100000) %}{% for j in range(100000) %}{% set x = namespace(a=i) %}{% endfor %}{% endfor %}",
       ""},
      {"many macros",
       "{% for i in range(100000) %}{% for j in range(100000) %}{% macro m() %}{% endmacro %}{% endfor %}{% endfor %}",
       ""},
      {"a large power", "{{ 10 ** 1000000000 }}", "too large"},
      {"a tower of powers", "{{ 10 ** 10 ** 10 }}", "too large"},
      {"replace that grows", "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}", big},
      {"join that grows", "{{ (range(100000)|list)|join('b' * 1000000) }}", big},
      {"a wide format", "{{ '%1000000000d' % 1 }}", big},
      {"a wide brace format", "{{ '{:>1000000000}'.format('a') }}", big},
      {"a precise format", "{{ '%.1000000000f' % 1.5 }}", "400 digits"},
      {"a wide center", "{{ 'a'|center(1000000000) }}", big},
      {"a wide ljust", "{{ 'a'.ljust(1000000000) }}", big},
      {"zfill", "{{ '1'.zfill(1000000000) }}", big},
      {"a wide indent", "{{ 'a\\nb'|indent(1000000000) }}", big},
      {"a wide JSON indent", "{{ [1]|tojson(indent=1000000000) }}", "at most 1000"},
      {"many slices", "{{ [1]|slice(1000000000)|list }}", "500000 items"},
      {"a filled batch", "{{ [1]|batch(1000000000, 0)|list }}", "500000 items"},
      {"splitting without end", "{{ ('a,' * 5000000).split(',')|length }}", ""},
      {"sorting in a loop", "{% set r = range(100000)|reverse|list %}{% for i in r %}{% set x = r|sort %}{% endfor %}",
       steps},
      {"searching in a loop",
       "{% set s = 'a' * 10000000 %}{% for i in range(100000) %}{% set x = 'b' in s %}{% endfor %}", steps},
      {"lengths in a loop", "{% set s = 'é' * 5000000 %}{% for i in range(100000) %}{% set x = s|upper %}{% endfor %}",
       steps},
      {"unique over many", "{% set x = range(100000)|map('string')|unique|list %}", steps},
      {"sixty thousand parentheses", "{{ " + repeat("(", 60000) + "1" + repeat(")", 60000) + " }}", deep},
      {"open parentheses", "{{ " + repeat("(", 60000), ""},
      {"sixty thousand brackets", "{{ " + repeat("[", 60000) + repeat("]", 60000) + " }}", deep},
      {"dicts within dicts", "{{ " + repeat("{1:", 30000) + "1" + repeat("}", 30000) + " }}", deep},
      {"not not not", "{{ " + repeat("not ", 60000) + "1 }}", deep},
      {"minus minus minus", "{{ " + repeat("-", 60000) + "1 }}", ""},
      {"- - -", "{{ " + repeat("- ", 60000) + "1 }}", deep},
      {"three thousand ifs", repeat("{% if 1 %}", 3000) + repeat("{% endif %}", 3000), deep},
      {"open ifs", repeat("{% if 1 %}", 3000), deep},
      {"open fors", repeat("{% for a in b %}", 3000), deep},
      {"macros within macros", repeat("{% macro m() %}", 3000) + repeat("{% endmacro %}", 3000), deep},
      {"a chain of filters", "{{ 'a'" + repeat("|trim", 30000) + " }}", deep},
      {"a chain of tests", "{{ 'a'" + repeat(" is string", 20000) + " }}", ""},
      {"a chain of attributes", "{{ a" + repeat(".b", 60000) + " }}", deep},
      {"a chain of calls", "{{ a" + repeat("()", 60000) + " }}", deep},
      {"a chain of subscripts", "{{ a" + repeat("[0]", 60000) + " }}", deep},
      {"subscripts within subscripts", "{{ " + repeat("a[", 60000) + "0" + repeat("]", 60000) + " }}", deep},
      {"calls within calls", "{{ " + repeat("a(", 60000) + repeat(")", 60000) + " }}", deep},
      {"filters within filters", "{{ " + repeat("a|b(", 50000) + repeat(")", 50000) + " }}", deep},
      {"a chain of else", "{{ " + repeat("1 if 0 else ", 20000) + "2 }}", deep},
      {"a chain of if", "{{ 1" + repeat(" if 0", 30000) + " }}", deep},
      {"targets within targets", "{% set " + repeat("(", 60000) + "a" + repeat(")", 60000) + " = 1 %}", deep},
      {"a macro that calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", calls},
      {"a macro that calls itself from deep inside",
       "{% macro m() %}" + repeat("{% if 1 %}", 60) + "{{ " + repeat("[", 40) + "m()" + repeat("]", 40) + " }}" +
           repeat("{% endif %}", 60) + "{% endmacro %}{{ m() }}",
       deep},
      {"a macro that calls itself through filters",
       "{% macro m() %}{% filter upper %}{% set x %}{% with a = 1 %}{% for i in [1] %}{{ [m()]|map('upper')|join }}{% "
       "endfor %}"
       "{% endwith %}{% endset %}{% endfilter %}{% endmacro %}{{ m() }}",
       ""},
      {"a macro that calls itself in its default", "{% macro m(a=m()) %}{% endmacro %}{{ m() }}", ""},
      {"a macro that calls itself from call blocks",
       "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall "
       "%}",
       calls},
      {"macros that call each other",
       "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", calls},
      {"a macro that calls itself from nested loops",
       "{% macro m() %}" + repeat("{% for i in [1] %}", 100) + "{{ m() }}" + repeat("{% endfor %}", 100) +
           "{% endmacro %}{{ m() }}",
       deep},
      {"a macro that calls itself from nested filter blocks",
       "{% macro m() %}" + repeat("{% filter upper %}", 100) + "{{ m() }}" + repeat("{% endfilter %}", 100) +
           "{% endmacro %}{{ m() }}",
       deep},
      {"a macro that calls itself from nested set blocks",
       "{% macro m() %}" + repeat("{% set x %}", 100) + "{{ m() }}" + repeat("{% endset %}", 100) +
           "{% endmacro %}{{ m() }}",
       deep},
      {"a macro that calls itself from nested with blocks",
       "{% macro m() %}" + repeat("{% with a = 1 %}", 100) + "{{ m() }}" + repeat("{% endwith %}", 100) +
           "{% endmacro %}{{ m() }}",
       deep},
      {"a macro that calls itself from nested slices",
       "{% macro m() %}{{ " + repeat("'a'[", 100) + "m()" + repeat(":]", 100) + " }}{% endmacro %}{{ m() }}", deep},
      {"a macro that calls itself from nested arguments",
       "{% macro m() %}{{ " + repeat("dict(a=", 100) + "m()" + repeat(")", 100) + " }}{% endmacro %}{{ m() }}", deep},
      {"a macro that calls itself from nested filters",
       "{% macro m() %}{{ " + repeat("'a'|d(", 100) + "m()" + repeat(")", 100) + " }}{% endmacro %}{{ m() }}", deep},
      {"a macro that calls itself from nested joins",
       "{% macro m() %}{{ " + repeat("('a' ~ ", 100) + "m()" + repeat(")", 100) + " }}{% endmacro %}{{ m() }}", deep},
      {"a loop that calls itself", "{% set l = [1] %}{% for x in l recursive %}{{ loop(l) }}{% endfor %}", calls},
      {"a condition that calls macros", "{% macro m() %}{% for i in [1] if m() %}{% endfor %}{% endmacro %}{{ m() }}",
       calls},
  };
}

}  // namespace

TEST_CASE("every bomb ends in an error, soon, on a small stack") {
  for (const Bomb& bomb : bombs()) {
    std::string error;
    const double seconds = on_small_stack([&] { error = failure(bomb.source); });
    INFO(bomb.name << ": " << error << " after " << seconds << " s");
    CHECK(error.rfind("line ", 0) == 0);
    CHECK(error.find(bomb.error) != std::string::npos);
    CHECK(error.size() < 400);
    CHECK(seconds < kMaxSeconds);
  }
}

TEST_CASE("what is long but not deep renders") {
  std::string sum, ifs, names;
  on_small_stack([&] {
    sum = render("{{ 0" + repeat(" + 1", 30000) + " }}");
    ifs = render(repeat("{% if 1 %}{% endif %}", 3000) + "end");
    names = render("{{ ''" + repeat(" ~ 'ab'", 20000) + " }}");
  });
  CHECK(sum == "30000");
  CHECK(ifs == "end");
  CHECK(names.size() == 40000);
  CHECK(render("{% if 0 %}" + repeat("{% elif 0 %}", 3000) + "{% else %}x{% endif %}") == "x");
  CHECK(render("{{ " + repeat("(", 100) + "1" + repeat(")", 100) + " }}") == "1");
  CHECK(render("{% macro f(n) %}{{ n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(5) }}") == "543210");
  CHECK(render("{% macro f(n) %}{{ f(n - 1) if n else 'bottom' }}{% endmacro %}{{ f(60) }}") == "bottom");
}

TEST_CASE("deep input is refused, not followed") {
  nlohmann::ordered_json deep = 1;
  for (int i = 0; i < 5000; ++i) deep = nlohmann::ordered_json::array({std::move(deep)});
  infer::ChatTemplateInput input;
  input.messages = &deep;
  CHECK_THROWS_WITH(ChatTemplate("{{ messages }}", "t").render(input), Catch::Contains("nested deeper than 100"));
}

TEST_CASE("an error names the template, the line and the column") {
  const auto error = [](const std::string& source) { return failure(source); };
  CHECK(error("a\n{{ b.c }}") == "line 2, column 6: 'b' is undefined");
  CHECK(error("{{ 'ä' + 1 }}") == "line 1, column 10: can only concatenate str (not \"int\") to str");
  CHECK(error("{% if x %}\n\n  {{ 1 ") == "line 3, column 3: the tag that starts here has no end");
  CHECK(error("\n{% for x in y %}") == "line 2, column 17: the block has no 'endfor'");
  CHECK(error("{{ 1|nosuch }}") == "line 1, column 6: unknown filter 'nosuch'");
  CHECK(error("{{ 1 is nosuch }}") == "line 1, column 9: unknown test 'nosuch'");
  CHECK(error("{{ nosuch() }}") == "line 1, column 4: 'nosuch' is undefined");
  CHECK(error("{% nosuch %}") == "line 1, column 4: unknown tag 'nosuch'");
  CHECK(error("{{ 1 / 0 }}") == "line 1, column 8: division by zero");
  CHECK(error("{% macro m() %}\n{{ none.x.y }}\n{% endmacro %}\n{{ m() }}") ==
        "line 2, column 11: 'None' has no attribute 'x'");
}

TEST_CASE("raise_exception's text is in the error, made safe for a terminal") {
  CHECK(failure("\n {{ raise_exception('Roles must alternate!') }}") == "line 2, column 5: Roles must alternate!");
  CHECK(failure("{{ raise_exception('\\x1b[31mred\\nsecond') }}") == "line 1, column 4: \\x1b[31mred\nsecond");
  CHECK(failure("{{ raise_exception('x' * 100000) }}").size() < 5000);
  try {
    ChatTemplate("{{ raise_exception('no') }}", "model.gguf").render({});
    FAIL("no error");
  } catch (const infer::Error& error) {
    CHECK(error.kind() == infer::ErrorKind::run);
    CHECK(std::string(error.what()) == "template model.gguf: line 1, column 4: no");
  }
}

TEST_CASE("a template that does not parse is refused when it is made") {
  for (const char* source : {"{% if %}", "{{ ", "{% endif %}", "{{ a b }}", "{% raw %}", "{# x", "{% set 1 = 2 %}"}) {
    INFO(source);
    CHECK_THROWS_AS(ChatTemplate(source), infer::Error);
  }
  CHECK_THROWS_AS(ChatTemplate(std::string(300 << 10, 'a')), infer::Error);
}

TEST_CASE("other files and Python's insides are out of reach") {
  for (const char* tag : {"include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'"}) {
    const std::string word = std::string(tag).substr(0, std::string(tag).find(' '));
    CHECK(failure(std::string("{% ") + tag + " %}").find("'" + word + "' is refused") != std::string::npos);
  }
  for (const char* path :
       {"''.__class__", "''.__class__.__mro__", "''['__class__']", "[].__class__.__base__", "range.__globals__",
        "cycler.__init__.__globals__", "joiner.__init__", "namespace.__class__", "(1).__class__", "{}.__class__",
        "''|attr('__class__')", "['']|map(attribute='__class__')|list", "none.__class__", "loop.__class__",
        "self.__init__.__globals__"}) {
    INFO(path);
    CHECK(failure(std::string("{{ ") + path + " }}").rfind("line 1, column ", 0) == 0);
  }
  CHECK(failure("{{ ''.__class__ }}") ==
        "line 1, column 7: access to attribute '__class__' of 'str' object is refused");
  CHECK(failure("{{ [].append(1) }}").find("unsafe") != std::string::npos);
  CHECK(failure("{{ {}.update({}) }}").find("unsafe") != std::string::npos);
}

TEST_CASE("faults in a template are errors, not crashes") {
  for (const char* fault : {"1 // 0",
                            "1 % 0",
                            "1.5 % 0",
                            "(-170141183460469231731687303715884105727 - 1) // -1",
                            "-(-170141183460469231731687303715884105727 - 1)",
                            "170141183460469231731687303715884105727 + 1",
                            "[1][::0]",
                            "'a'[::0]",
                            "range(1, 2, 0)",
                            "'inf'|float|round(1, 'ceil')",
                            "1e300 * 1e300 // 1 | int % 0",
                            "'%d' % ('inf'|float)",
                            "'%d' % 1e300",
                            "strftime_now(1)",
                            "strftime_now('%Q' * 100000)",
                            "'a'|int(base=99)",

                            "'%(a)s' % 1",
                            "'{'.format()",
                            "'}'.format()",
                            "'{:z}'.format(1)",
                            "'{99999999999999999999}'.format(1)",
                            "'%c' % -1",
                            "[].index(1)",
                            "'a'.split(1)",
                            "'a'.index('b')",
                            "''.split('')",
                            "dict([1])",
                            "dict(1)",
                            "cycler()",
                            "[1]|slice(0)|list",
                            "{[]: 1}",
                            "[1]|sum(start='')",
                            "loop(1)",
                            "(1).x()",
                            "none()",
                            "raise_exception()"}) {
    INFO(fault);
    CHECK(failure(std::string("{{ ") + fault + " }}").rfind("line 1, column ", 0) == 0);
  }
  CHECK(render("{{ (-170141183460469231731687303715884105727 - 1) % -1 }}") == "0");
  CHECK(render("{{ 'a b'.split(' ', -9223372036854775808) ~ 'a'.replace('a', 'b', -9223372036854775808) }}") ==
        "['a', 'b']b");
  CHECK(render("{{ 'abc'[170141183460469231731687303715884105727:] }}") == "");
  CHECK(render("{{ 'abc'[-170141183460469231731687303715884105727:2] }}") == "ab");
}

TEST_CASE("namespaces that hold each other end with the render") {
  CHECK(render("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{% set a.a = [a] %}{{ a.b.a.b.a "
               "== a }}") == "True");
  CHECK(render("{% set ns = namespace() %}{% for i in range(50000) %}{% set n = namespace(p=ns.p) %}{% set ns.p = n %}"
               "{% endfor %}done") == "done");
  CHECK(render("{% for i in [1, 2] %}{{ loop.changed(loop) }}{% endfor %}") == "TrueFalse");
}

TEST_CASE("one template renders on several threads at once") {
  const ChatTemplate chat("{% for i in range(200) %}{{ 'ab'|upper ~ i }}{% endfor %}");
  const std::string expected = chat.render({});
  std::vector<std::thread> threads;
  std::vector<int> same(4, 0);
  for (size_t t = 0; t < same.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) same[t] += chat.render({}) == expected;
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(same == std::vector<int>(4, 20));
}

TEST_CASE("texts keep their marks when they are cut and joined") {
  using infer::jinja::Span;
  using infer::jinja::Text;
  Text text("ab");
  const Text user = Text::from_user("UV");
  text.append(user, 0, 2);
  text.append("cd");
  text.append(user, 1, 2);
  CHECK(text.bytes == "abUVcdV");
  CHECK(text.user == std::vector<Span>{{2, 4}, {6, 7}});
  CHECK(text.slice(3, 7).user == std::vector<Span>{{0, 1}, {3, 4}});
  CHECK(text.slice(0, 2).user.empty());
  Text doubled;
  doubled.append(user, 0, 2);
  doubled.append(user, 0, 2);
  CHECK(doubled.user == std::vector<Span>{{0, 4}});
}

TEST_CASE("bytes that are not UTF-8 pass through unharmed") {
  const nlohmann::ordered_json messages = std::string("a\xff\xc3z\xe2\x82");
  infer::ChatTemplateInput input;
  input.messages = &messages;
  CHECK(ChatTemplate("{{ messages }}").render(input) == "a\xff\xc3z\xe2\x82");
  CHECK(ChatTemplate("{{ messages|length }}").render(input) == "6");
  CHECK(ChatTemplate("{{ messages|upper }}").render(input) == "A\xff\xc3Z\xe2\x82");
  CHECK(ChatTemplate("{{ messages[::-1][::-1] }}").render(input) == "a\xff\xc3z\xe2\x82");
}
