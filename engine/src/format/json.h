// JSON as RFC 8259 has it, and nothing beyond: strict about its grammar and about UTF-8, bounded in depth and size, no key twice.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "status.h"

namespace millrace {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the text

  Json() = default;
  template <typename Value>
  explicit Json(Value value) : held_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(held_); }
  std::optional<bool> boolean() const;
  // A whole number that was written as one.
  std::optional<int64_t> integer() const;
  std::optional<double> number() const;
  const std::string* string() const { return std::get_if<std::string>(&held_); }
  const Array* array() const { return std::get_if<Array>(&held_); }
  const Object* object() const { return std::get_if<Object>(&held_); }

  // The member of an object; a null value where it is missing or this is none. Looks at one after another.
  const Json& operator[](std::string_view key) const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> held_;
};

constexpr int json_depth_max = 64;

// The one value that a text holds. The error says what is wrong and at which byte.
Result<Json> parse_json(std::string_view text);

}  // namespace millrace
