// Runs tests: all of them, or those named on the command line. `--ctest FILE` writes one add_test line each, so that ctest runs every
// test in a process of its own and counts it by itself.
#include "test.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <random>

namespace millrace::test {
namespace {

constexpr int failures_a_test_max = 8;
constexpr int exit_skipped = 77;

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

int failures = 0;  // of the running test

enum class Outcome { passed, failed, skipped };

Outcome run(const Case& each) {
  failures = 0;
  std::string skipped;
  try {
    each.body();
  } catch (const Ended&) {
  } catch (const Skipped& reason) {
    skipped = reason.why;
  } catch (const std::exception& error) {
    fail(each.title, 0, std::string("threw ") + error.what());
  }
  if (failures > 0) {
    std::printf("failed: %s (again with MILLRACE_TEST_SEED=%llu)\n", each.title, static_cast<unsigned long long>(seed()));
    return Outcome::failed;
  }
  if (!skipped.empty()) {
    std::printf("not run: %s: %s\n", skipped.c_str(), each.title);
    return Outcome::skipped;
  }
  std::printf("passed: %s\n", each.title);
  return Outcome::passed;
}

int write_ctest(const char* program, const char* path) {
  const std::string name = std::filesystem::path(program).filename().string().substr(std::strlen("test_"));
  std::ofstream out(path);
  for (const Case& each : cases()) {
    const std::string test = "[=[" + name + ": " + each.title + "]=]";
    out << "add_test(" << test << " [=[" << program << "]=] [=[" << each.title << "]=])\n"
        << "set_tests_properties(" << test << " PROPERTIES SKIP_RETURN_CODE " << exit_skipped << " TIMEOUT 300)\n";
  }
  return out.good() ? 0 : 1;
}

}  // namespace

Registration::Registration(const char* title, void (*body)()) { cases().push_back({title, body}); }

void fail(const char* file, int line, const std::string& what) {
  failures++;
  std::printf("%s:%d: %s\n", file, line, what.c_str());
  if (failures >= failures_a_test_max) throw Ended{};
}

void end(const char* file, int line, const std::string& what) {
  fail(file, line, what);
  throw Ended{};
}

uint64_t seed() {
  static const uint64_t chosen = [] {
    const char* given = std::getenv("MILLRACE_TEST_SEED");
    return given ? std::strtoull(given, nullptr, 10) : uint64_t{std::random_device{}()};
  }();
  return chosen;
}

}  // namespace millrace::test

int main(int argc, char** argv) {
  using namespace millrace::test;
  if (argc == 3 && std::strcmp(argv[1], "--ctest") == 0) return write_ctest(argv[0], argv[2]);
  int passed = 0, failed = 0, skipped = 0, found = 0;
  for (const Case& each : cases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; i++) wanted |= std::strcmp(argv[i], each.title) == 0;
    if (!wanted) continue;
    found++;
    const Outcome outcome = run(each);
    (outcome == Outcome::passed ? passed : outcome == Outcome::failed ? failed : skipped)++;
    std::fflush(stdout);
  }
  if (found < argc - 1) {
    std::printf("of %d tests named only %d exist\n", argc - 1, found);
    failed++;
  }
  std::printf("%d passed, %d failed", passed, failed);
  if (skipped > 0) std::printf(", %d skipped", skipped);
  std::printf("\n");
  return failed > 0 ? 1 : passed == 0 && skipped > 0 ? exit_skipped : 0;
}
