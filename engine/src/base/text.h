// Sentences from parts: text("tensor ", name, " ends at ", end).
#pragma once

#include <sstream>
#include <string>

namespace millrace {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace millrace
