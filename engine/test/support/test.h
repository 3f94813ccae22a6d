// A test harness in one header and a page: named tests, checks that say what they saw, one line of totals at the end.
//
//     TEST("a released prefix is whole code points") { CHECK_EQUAL(released.text, "né"); }
//
// CHECK and CHECK_EQUAL go on after a failure, REQUIRE ends its test. Random inputs are fresh in every run; a failure prints the seed.
#pragma once

#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace millrace::test {

// Under sanitizers a step takes ten times as long: the longest tests do less there, and all of it without.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool is_sanitized = true;
#else
inline constexpr bool is_sanitized = false;
#endif


struct Case {
  const char* title;
  void (*body)();
};

struct Registration {
  Registration(const char* title, void (*body)());
};

struct Ended {};  // thrown to leave a test that failed
struct Skipped {  // thrown to leave a test that cannot run here
  std::string why;
};

// Notes a failure of the running test; ends it after so many that more would tell nothing.
void fail(const char* file, int line, const std::string& what);
[[noreturn]] void end(const char* file, int line, const std::string& what);

// The seed of this run's random inputs: MILLRACE_TEST_SEED, or a fresh one.
uint64_t seed();

template <typename Value>
concept Printable = requires(std::ostringstream& out, const Value& value) { out << value; };

template <typename Value>
std::string show(const Value& value) {
  std::ostringstream out;
  if constexpr (std::is_same_v<Value, std::string>) {
    out << '"';
    for (const char c : value)
      if (c >= ' ' && c <= '~')
        out << c;
      else
        out << "\\x" << std::hex << (static_cast<unsigned>(c) & 0xffu) << std::dec;
    out << '"';
  } else if constexpr (std::is_same_v<Value, bool>) {
    out << (value ? "true" : "false");
  } else if constexpr (std::is_floating_point_v<Value>) {
    out.precision(9);
    out << value;
  } else if constexpr (std::is_enum_v<Value>) {
    out << static_cast<int64_t>(value);
  } else if constexpr (Printable<Value>) {
    out << value;
  } else {
    out << '[';
    for (const auto& each : value) out << (&each == &*std::begin(value) ? "" : ", ") << show(each);
    out << ']';
  }
  return out.str();
}

template <typename... Parts>
std::string sentence(const char* what, const Parts&... parts) {
  std::ostringstream out;
  out << what;
  if constexpr (sizeof...(parts) > 0) ((out << ": ") << ... << parts);
  return out.str();
}

template <typename Actual, typename Expected>
void check_equal(const char* file, int line, const char* what, const Actual& actual, const Expected& expected) {
  if (!(actual == expected)) fail(file, line, sentence(what, show(actual), ", not ", show(expected)));
}

}  // namespace millrace::test

#define TEST_JOIN_(a, b) a##b
#define TEST_JOIN(a, b) TEST_JOIN_(a, b)
#define TEST(title)                                                                                                     \
  static void TEST_JOIN(test_, __LINE__)();                                                                             \
  static const ::millrace::test::Registration TEST_JOIN(registration_, __LINE__){title, &TEST_JOIN(test_, __LINE__)}; \
  static void TEST_JOIN(test_, __LINE__)()

// What follows the condition is printed when it is false.
#define CHECK(condition, ...)                                                                                                      \
  do {                                                                                                                             \
    if (!(condition)) ::millrace::test::fail(__FILE__, __LINE__, ::millrace::test::sentence(#condition __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)
#define REQUIRE(condition, ...)                                                                                                   \
  do {                                                                                                                            \
    if (!(condition)) ::millrace::test::end(__FILE__, __LINE__, ::millrace::test::sentence(#condition __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)
#define CHECK_EQUAL(actual, expected) ::millrace::test::check_equal(__FILE__, __LINE__, #actual, actual, expected)
