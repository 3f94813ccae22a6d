// JSON: what the grammar allows is read, everything else is refused with the byte at which it goes wrong.
#include "format/json.h"

#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

std::string problem_of(const std::string& text) {
  const auto parsed = parse_json(text);
  return parsed.ok() ? "" : parsed.message();
}

}  // namespace

TEST("values of every kind are read as what they are") {
  auto parsed = parse_json(" {\"a\": [1, -2.5e1, true, false, null], \"b\": {\"c\": \"x\"}, \"\": 9007199254740993} ");
  REQUIRE(parsed.ok(), parsed.message());
  const Json json = parsed.take();
  const Json::Array& items = *json["a"].array();
  REQUIRE(items.size() == 5, items.size());
  CHECK_EQUAL(items[0].integer().value_or(0), int64_t{1});
  CHECK_EQUAL(items[0].number().value_or(0), 1.0);
  CHECK_EQUAL(items[1].number().value_or(0), -25.0);
  CHECK(!items[1].integer() && items[2].boolean() == true && items[3].boolean() == false && items[4].is_null());
  CHECK_EQUAL(*json["b"]["c"].string(), std::string("x"));
  CHECK_EQUAL(json[""].integer().value_or(0), int64_t{9007199254740993});
  CHECK(json["none"]["at"]["all"].is_null() && items[0]["a"].is_null());
}

TEST("strings are read with their escapes, and only in UTF-8") {
  const auto string_of = [](const std::string& text) {
    const auto parsed = parse_json(text);
    REQUIRE(parsed.ok(), parsed.message());
    return *parsed.value().string();
  };
  CHECK_EQUAL(string_of("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), std::string("\"\\/\b\f\n\r\t"));
  CHECK_EQUAL(string_of("\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\""), std::string("A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
  CHECK_EQUAL(string_of("\"\xf0\x9f\x98\x80\xc3\xa9\""), std::string("\xf0\x9f\x98\x80\xc3\xa9"));
  CHECK_EQUAL(string_of("\"\\u0000\""), std::string(1, '\0'));
  for (const char* wrong : {"\"\xff\"", "\"\xc0\x80\"", "\"\xe0\x80\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc3\"", "\"\xf0\x9f\x98\""})
    CHECK_EQUAL(problem_of(wrong), std::string("is not valid JSON: a string is not UTF-8 at byte 1"));
  for (const char* wrong : {"\"\\ud800\"", "\"\\ude00\"", "\"\\ud83d\\u0041\"", "\"\\u00g0\"", "\"\\u12\"", "\"\\x\"", "\"a\nb\"", "\"abc", "\"\\"})
    CHECK(!problem_of(wrong).empty(), wrong);
}

TEST("what the grammar does not allow is refused") {
  for (const char* wrong : {"", " ", "{", "[", "[1,]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "01", "1.", ".5", "+1", "-", "1e", "1e+", "NaN", "Infinity",
                            "tru", "nul", "'a'", "[1]]", "1 2", "{\"a\":1 \"b\":2}", "1e999", "//"})
    CHECK(!problem_of(wrong).empty(), wrong);
  CHECK_EQUAL(problem_of("{\"a\": 1, \"a\": 2}"), std::string("is not valid JSON: an object that ends has one key twice at byte 16"));
  CHECK_EQUAL(problem_of("[1, 2"), std::string("is not valid JSON: a comma or the array's end should stand at byte 5"));
}

TEST("depth is bounded") {
  const auto nested = [](int depth) { return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']'); };
  CHECK_EQUAL(problem_of(nested(json_depth_max)), std::string());
  CHECK(problem_of(nested(json_depth_max + 2)).find("nested too deeply") != std::string::npos);
  CHECK(problem_of(std::string(1 << 20, '[')).find("nested too deeply") != std::string::npos);
}

TEST("a text damaged at random is read or refused, never more") {
  test::Random random;
  const std::string whole = "{\"a\": [1, -2.5e1, true, null, \"caf\xc3\xa9 \\ud83d\\ude00\"], \"b\": {\"c\": {}, \"d\": []}}";
  for (int round = 0; round < 20000; round++) {
    std::string text = whole.substr(0, static_cast<size_t>(random.between(0, static_cast<int>(whole.size()))));
    for (int damage = random.between(0, 3); damage > 0 && !text.empty(); damage--)
      text[static_cast<size_t>(random.between(0, static_cast<int>(text.size()) - 1))] = random.chance(0.5) ? "{}[]\",:\\u"[random.between(0, 8)] : static_cast<char>(random.next());
    const auto parsed = parse_json(text);
    CHECK(parsed.ok() || parsed.message().size() > 30);
  }
}
