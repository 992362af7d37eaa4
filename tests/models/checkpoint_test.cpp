// The typed getters of Checkpoint: what they accept, and what their refusals say.
#include "models/checkpoint.h"

#include <cmath>
#include <functional>
#include <limits>

#include "tests/catch.h"

using infer::Checkpoint;
using infer::Error;
using infer::ErrorKind;
using infer::HostTensor;
using infer::Value;

namespace {

Checkpoint checkpoint_with(const std::string& key, Value::Data data, const std::string& type) {
  Checkpoint checkpoint;
  checkpoint.path = "dir/model.gguf";
  checkpoint.metadata[key] = Value{std::move(data), type};
  return checkpoint;
}

// The message of the Error(bad_file) that `call` throws.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::bad_file);
    return e.what();
  }
  FAIL("nothing was refused");
  return {};
}

}  // namespace

TEST_CASE("an integer is found when it lies in its range, limits included") {
  const Checkpoint c = checkpoint_with("k", int64_t{7}, "u32");
  CHECK(c.get_int("k", 7, 7) == 7);
  CHECK(c.find_int("k", 0, 100) == 7);
  CHECK_FALSE(c.find_int("other", 0, 100).has_value());
  CHECK(refusal([&] { c.get_int("k", 8, 9); }) ==
        "dir/model.gguf: k: value out of range, found 7, allowed an integer in 8..9");
  CHECK(refusal([&] { c.get_int("k", 0, 6); }).find("found 7") != std::string::npos);
}

TEST_CASE("an integer above the signed range is out of range, not negative") {
  const Checkpoint c = checkpoint_with("k", uint64_t{18446744073709551615u}, "u64");
  CHECK(refusal([&] {
          c.find_int("k", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
        }).find("18446744073709551615") != std::string::npos);
}

TEST_CASE("a missing required key is named with what would be allowed") {
  Checkpoint c;
  c.path = "m.gguf";
  CHECK(refusal([&] { c.get_int("llama.block_count", 1, 1024); }) ==
        "m.gguf: llama.block_count: required key is missing, allowed an integer in 1..1024");
  CHECK(refusal([&] { c.get_float("f", 0, 1); }).find("f: required key is missing") != std::string::npos);
  CHECK(refusal([&] { c.get_string("s"); }).find("s: required key is missing") != std::string::npos);
}

TEST_CASE("every getter refuses every other type, naming key, type and value") {
  const std::vector<std::pair<Value::Data, std::string>> values = {
      {true, "bool"},
      {int64_t{5}, "i32"},
      {5.5, "f32"},
      {std::string("five"), "string"},
      {std::vector<bool>{true}, "array of bool"},
      {std::vector<int64_t>{5}, "array of i32"},
      {std::vector<double>{5.5}, "array of f32"},
      {std::vector<std::string>{"five"}, "array of string"},
  };
  const std::vector<std::pair<std::string, std::function<void(const Checkpoint&)>>> getters = {
      {"bool", [](const Checkpoint& c) { c.find_bool("k"); }},
      {"i32", [](const Checkpoint& c) { c.find_int("k", 0, 10); }},
      {"f32", [](const Checkpoint& c) { c.find_float("k", 0, 10); }},
      {"string", [](const Checkpoint& c) { c.find_string("k"); }},
      {"array of i32", [](const Checkpoint& c) { c.find_ints("k", -1, 0, 10); }},
      {"array of f32", [](const Checkpoint& c) { c.find_floats("k", -1); }},
      {"array of string", [](const Checkpoint& c) { c.find_strings("k"); }},
  };
  for (const auto& [data, type] : values)
    for (const auto& [wanted, getter] : getters) {
      const Checkpoint c = checkpoint_with("k", data, type);
      INFO(type << " read as " << wanted);
      if (type == wanted || (type == "array of bool" && wanted == "array of i32")) {
        CHECK_NOTHROW(getter(c));
      } else {
        const std::string message = refusal([&] { getter(c); });
        CHECK(message.find("k: wrong type, found " + type) != std::string::npos);
        CHECK(message.find("allowed a") != std::string::npos);
      }
    }
}

TEST_CASE("floats that are not finite or out of range are refused") {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  CHECK(checkpoint_with("k", 0.5, "f32").get_float("k", 0, 1) == 0.5);
  for (const double bad : {nan, inf, -inf, -0.001, 1.001})
    CHECK(refusal([&] { checkpoint_with("k", bad, "f64").get_float("k", 0, 1); }).find("out of range") !=
          std::string::npos);
  CHECK(refusal([&] { checkpoint_with("k", nan, "f64").get_float("k", -inf, inf); }).find("a finite float") !=
        std::string::npos);
  CHECK(refusal([&] {
          checkpoint_with("k", std::vector<double>{1, nan}, "array of f32").find_floats("k", 2);
        }).find("element 1 is not finite") != std::string::npos);
}

TEST_CASE("arrays are checked for their length and each element's range") {
  const Checkpoint c = checkpoint_with("k", std::vector<int64_t>{1, 2, 300}, "array of u32");
  CHECK(c.find_ints("k", 3, 0, 300) == std::vector<int64_t>{1, 2, 300});
  CHECK(c.find_ints("k", -1, 0, 300)->size() == 3);
  CHECK(refusal([&] { c.find_ints("k", 4, 0, 300); }).find("found 3 elements, allowed 4 elements") !=
        std::string::npos);
  CHECK(refusal([&] { c.find_ints("k", 3, 0, 255); }).find("element 2 out of range, found 300") != std::string::npos);
  const Checkpoint words = checkpoint_with("k", std::vector<std::string>{"a", "b"}, "array of string");
  REQUIRE(words.find_strings("k", 2) != nullptr);
  CHECK(words.find_strings("k", 2)->at(1) == "b");
  CHECK(words.find_strings("other") == nullptr);
  CHECK(refusal([&] { words.find_strings("k", 3); }).find("wrong length") != std::string::npos);
  const Checkpoint wide = checkpoint_with("k", std::vector<uint64_t>{~uint64_t{0}}, "array of u64");
  CHECK(refusal([&] { wide.find_ints("k", 1, 0, 9); }).find("out of range") != std::string::npos);
  const Checkpoint bools = checkpoint_with("k", std::vector<bool>{true, false}, "array of bool");
  CHECK(bools.find_ints("k", 2, 0, 1) == std::vector<int64_t>{1, 0});
  CHECK(checkpoint_with("k", std::vector<double>{0.5}, "array of f32").find_floats("k", 1) == std::vector<double>{0.5});
}

TEST_CASE("a value prints on one line, escaped and cut") {
  CHECK(Value{true, "bool"}.text() == "true");
  CHECK(Value{int64_t{-3}, "i8"}.text() == "-3");
  CHECK(Value{uint64_t{18446744073709551615u}, "u64"}.text() == "18446744073709551615");
  CHECK(Value{static_cast<double>(1e-5f), "f32"}.text() == "1e-05");
  CHECK(Value{0.1, "f64"}.text() == "0.1");
  CHECK(Value{std::string("a\n\x1b[2J"), "string"}.text() == "\"a\\x0a\\x1b[2J\"");
  CHECK(Value{std::vector<int64_t>{1, 2, 3, 4}, "array of i32"}.text(2) == "[1, 2, ... 4 in all]");
  CHECK(Value{std::vector<int64_t>{1, 2}, "array of i32"}.text(2) == "[1, 2]");
  CHECK(Value{std::vector<bool>{true}, "array of bool"}.text() == "[true]");
  CHECK(Value{std::vector<std::string>{}, "array of string"}.text() == "[]");
  CHECK(Value{std::string(10000, 'x'), "string"}.text().size() < 200);
}

TEST_CASE("tensors are found by name once they are indexed, and a name may stand for one only") {
  Checkpoint c;
  c.path = "m.gguf";
  c.tensors = {HostTensor{"a", infer::DType::F32, {2, 3}, nullptr, 24},
               HostTensor{"b", infer::DType::F32, {4}, nullptr, 16}};
  c.index_tensors();
  REQUIRE(c.find_tensor("b") != nullptr);
  CHECK(c.find_tensor("b")->bytes == 16);
  CHECK(c.find_tensor("a")->n_elements() == 6);
  CHECK(c.find_tensor("c") == nullptr);
  const Checkpoint moved = std::move(c);
  CHECK(moved.find_tensor("a")->name == "a");

  Checkpoint twice;
  twice.path = "m.gguf";
  twice.tensors = {HostTensor{"x\n", infer::DType::F32, {1}, nullptr, 4},
                   HostTensor{"x\n", infer::DType::F32, {1}, nullptr, 4}};
  CHECK(refusal([&] { twice.index_tensors(); }) ==
        "m.gguf: tensor x\\x0a: the name appears twice, allowed each tensor once");
}
