// What can go wrong, as a value: an empty message is success. Sentences are for a person: what was wrong, with what value, what to do.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace millrace {

class [[nodiscard]] Status {
 public:
  Status() = default;
  static Status error(std::string message) { return Status(std::move(message)); }

  bool ok() const { return message_.empty(); }
  const std::string& message() const { return message_; }

 private:
  explicit Status(std::string message) : message_(std::move(message)) {}
  std::string message_;
};

// A value, or why there is none.
template <typename Value>
class [[nodiscard]] Result {
 public:
  Result(Value value) : held_(std::move(value)) {}
  Result(Status status) : held_(std::move(status)) {}

  bool ok() const { return std::holds_alternative<Value>(held_); }
  const Value& value() const { return std::get<Value>(held_); }
  Value take() { return std::move(std::get<Value>(held_)); }
  Status status() const { return ok() ? Status() : std::get<Status>(held_); }
  const std::string& message() const { return std::get<Status>(held_).message(); }

 private:
  std::variant<Value, Status> held_;
};

}  // namespace millrace
