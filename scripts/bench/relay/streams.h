// What servers' messages mean: who is greeted, answered, refused or ended, and when each token was due. Knows no socket.
#pragma once

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <vector>

#include "frames.h"
#include "plan.h"
#include "tally.h"

namespace relay {

// What a message asks of the socket that it came on.
struct Reaction {
  bool is_greeted = false;  // STARTs may be sent now
  std::string reply;        // a message, empty for none
  std::string broken;       // why nothing more can come of this socket, empty for none
};

class Streams {
 public:
  explicit Streams(const Plan& plan)
      : plan_(plan), streams_(plan.heads.size() * plan.starts.size()), unanswered_(streams_.size()) {}

  Stream& at(size_t socket, size_t start) { return streams_[socket * plan_.starts.size() + start]; }
  size_t count() const { return streams_.size(); }
  size_t unanswered() const { return unanswered_; }
  Tally& tally() { return tally_; }

  void measure(int64_t now) {
    is_measuring_ = true;
    window_ = Window{};
    window_.begun_us = now;
    window_.cpu_begun_s = cpu_seconds();
  }

  void report(int64_t now) const { print_report(window_, tally_, streams_, plan_.deadline_ms, now); }

  Reaction hear(size_t socket, const Frame& frame, int64_t now) {
    if (plan_.speech != Speech::millrace) return frame.opcode == opcode_text ? hear_text(socket, frame, now) : Reaction{};
    return frame.opcode == opcode_binary ? hear_message(socket, frame, now) : Reaction{};
  }

  // A socket that is gone answers none of its streams any more.
  void lost(size_t socket) {
    for (size_t start = 0; start < plan_.starts.size(); start++) {
      Stream& stream = at(socket, start);
      if (stream.state == Stream::unanswered) unanswered_--;
      stream.state = Stream::ended;
    }
  }

 private:
  enum Op { op_hello = 1, op_started = 2, op_queued = 3, op_tokens = 4, op_done = 5, op_error = 6, op_ping = 7, op_goaway = 13, op_handoff = 14 };

  Reaction hear_message(size_t socket, const Frame& frame, int64_t now) {
    Cursor message(frame.payload);
    message.array();
    const int op = static_cast<int>(message.number());
    const auto number = static_cast<size_t>(message.number());
    if (op == op_hello) return {true, "", ""};
    if (op == op_ping) return {false, pong(static_cast<uint32_t>(message.number())), ""};
    if (op == op_goaway) return {false, "", "told to go"};
    if (number < 1 || number > plan_.starts.size()) return {false, "", "a message of a stream that was not started"};
    Stream& stream = at(socket, number - 1);
    if (op == op_tokens) {
      const auto seq = static_cast<uint64_t>(message.number());
      const std::string_view text = message.text();
      const auto count = static_cast<uint64_t>(std::count(text.begin(), text.end(), ' '));
      if (message.failed() || seq != stream.seq + count) tally_.holes++;
      stream.seq = seq;
      tokens(stream, text, frame, now);
    } else if (op == op_started) {
      promised(stream, message);
    } else if (op == op_error) {
      tally_.refusals[std::string(message.text())]++;
      const bool had_nothing = stream.state == Stream::unanswered;
      answered(stream, now);
      stream.state = had_nothing ? Stream::refused : Stream::ended;
    } else if (op == op_done || op == op_handoff) {
      answered(stream, now);
      stream.state = Stream::ended;
    }
    return {};
  }

  // Socket.IO's handshake (engine.io 4) and its events, or plain JSON. In both a token is the last text that begins with a space.
  Reaction hear_text(size_t socket, const Frame& frame, int64_t now) {
    const std::string_view text = frame.payload;
    if (plan_.speech == Speech::socketio) {
      if (text.substr(0, 2) == "40") return {true, "", ""};
      if (text.substr(0, 1) == "0") return {false, "40", ""};
      if (text.substr(0, 1) == "2") return {false, "3", ""};
      if (text.substr(0, 2) != "42") return {false, "", "a packet that is no event"};
    }
    const size_t at_quote = text.rfind("\" ");
    if (at_quote == std::string_view::npos) {
      tally_.unstamped++;
      return {};
    }
    const std::string_view rest = text.substr(at_quote + 1);
    tokens(at(socket, 0), rest.substr(0, rest.find('"')), frame, now);
    return {};
  }

  // PONG; any width of an integer will do.
  static std::string pong(uint32_t nonce) {
    std::string message("\x93\x22\x00\xce", 4);
    for (int byte = 3; byte >= 0; byte--) message += static_cast<char>(nonce >> (8 * byte));
    return message;
  }

  // STARTED's admission. Who waits is promised its first token in the time of its class after the wait.
  void promised(Stream& stream, Cursor& message) const {
    message.text();
    message.number();
    message.number();
    for (size_t pairs = message.map(); pairs > 0 && !message.failed(); pairs--) {
      const std::string_view key = message.text();
      const double ms = message.number();
      if (key == "ttftMs") stream.promised_ms = ms;
      if (key == "waitMs") stream.promised_ms = ms + plan_.deadline_ms;
    }
  }

  // One or more tokens, each a space and its time.
  void tokens(Stream& stream, std::string_view text, const Frame& frame, int64_t now) {
    answered(stream, now);
    if (is_measuring_) {
      window_.frames++;
      window_.bytes += frame.bytes;
    }
    while (!text.empty()) {
      const bool is_spaced = text.front() == ' ';
      text.remove_prefix(1);
      const size_t length = std::min(text.find(' '), text.size());
      int64_t due_us = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + length, due_us, 36);
      if (!is_spaced || error != std::errc{} || end != text.data() + length) tally_.unstamped++;
      else if (is_measuring_) window_.latency.add(now - due_us);
      if (is_measuring_) window_.tokens++;
      text.remove_prefix(length);
    }
  }

  void answered(Stream& stream, int64_t now) {
    if (stream.state != Stream::unanswered) return;
    stream.state = Stream::running;
    stream.answered_us = now;
    unanswered_--;
  }

  const Plan& plan_;
  std::vector<Stream> streams_;  // [socket][start]
  size_t unanswered_;
  bool is_measuring_ = false;
  Window window_;
  Tally tally_;
};

}  // namespace relay
