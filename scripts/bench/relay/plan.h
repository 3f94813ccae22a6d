// What a run of the load client does, as lines on its standard input: a name, a space and a value, which is hex where it is bytes.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

namespace relay {

// Lines of a file descriptor. Those of the plan are waited for; those of a running load are taken as they come.
class Lines {
 public:
  explicit Lines(int fd) : fd_(fd) {}

  // Reads once, which blocks where nothing is there yet. False at the end.
  bool fill() {
    char bytes[65'536];
    const ssize_t count = ::read(fd_, bytes, sizeof bytes);
    if (count <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(count));
    return true;
  }

  std::optional<std::string> next() {
    const size_t end = buffer_.find('\n', at_);
    if (end == std::string::npos) {
      buffer_.erase(0, at_);
      at_ = 0;
      return std::nullopt;
    }
    std::string line = buffer_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }

 private:
  int fd_;
  std::string buffer_;
  size_t at_ = 0;
};

enum class Speech { millrace, json, socketio };

struct Plan {
  std::string host;
  int port = 0;
  std::string path;
  Speech speech = Speech::millrace;
  int64_t gap_us = 0;      // from one START to the next, over all sockets
  bool has_small_buffers = false;  // so that a server soon finds a socket full once it is not read
  double deadline_ms = 0;  // of a first token or a refusal, where nothing else was promised
  std::vector<std::string> starts;  // a message a stream; each socket sends them in this order
  std::vector<std::string> heads;   // a socket's own header lines, each with its end
};

inline std::string from_hex(const std::string& hex) {
  const auto nibble = [](char digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; };
  std::string bytes(hex.size() / 2, '\0');
  for (size_t at = 0; at < bytes.size(); at++) bytes[at] = static_cast<char>(nibble(hex[2 * at]) << 4 | nibble(hex[2 * at + 1]));
  return bytes;
}

// Up to the line `go`. Empty where a line is none of a plan's, which `wrong` then is.
inline std::optional<Plan> read_plan(Lines& lines, std::string& wrong) {
  Plan plan;
  do {
    while (const std::optional<std::string> line = lines.next()) {
      const size_t space = line->find(' ');
      const std::string name = line->substr(0, space), value = space == std::string::npos ? "" : line->substr(space + 1);
      if (name == "host") plan.host = value;
      else if (name == "port") plan.port = std::atoi(value.c_str());
      else if (name == "path") plan.path = value;
      else if (name == "speech" && value == "millrace") plan.speech = Speech::millrace;
      else if (name == "speech" && value == "json") plan.speech = Speech::json;
      else if (name == "speech" && value == "socketio") plan.speech = Speech::socketio;
      else if (name == "gap_us") plan.gap_us = std::atoll(value.c_str());
      else if (name == "deadline_ms") plan.deadline_ms = std::atof(value.c_str());
      else if (name == "small_buffers") plan.has_small_buffers = true;
      else if (name == "start") plan.starts.push_back(from_hex(value));
      else if (name == "socket") plan.heads.push_back(from_hex(value));
      else if (name == "go") return plan;
      else {
        wrong = *line;
        return std::nullopt;
      }
    }
  } while (lines.fill());
  wrong = "(the end)";
  return std::nullopt;
}

}  // namespace relay
