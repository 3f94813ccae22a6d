// Files that tests read.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "test.h"

namespace millrace::test {

inline std::string fixture_path(const std::string& name) { return std::string(MILLRACE_TEST_FIXTURES) + "/" + name; }

// The whole of engine/test/fixtures/<name>, or the test ends.
inline std::vector<uint8_t> fixture(const std::string& name) {
  std::ifstream file(fixture_path(name), std::ios::binary);
  REQUIRE(file.good(), "engine/test/fixtures/", name, " is missing");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace millrace::test
