// What the load client reads and writes: WebSocket frames (RFC 6455) and, of MessagePack, what stands in the messages that it looks into.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace relay {

enum Opcode : uint8_t { opcode_text = 1, opcode_binary = 2, opcode_close = 8, opcode_ping = 9, opcode_pong = 10 };

constexpr size_t frame_bytes_max = size_t{1} << 20;

struct Frame {
  enum State { incomplete, whole, broken } state = incomplete;
  uint8_t opcode = 0;
  std::string_view payload;
  size_t bytes = 0;  // header and payload
};

inline uint64_t big_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

// Servers do not mask, and nobody here fragments: either is broken.
inline Frame read_frame(std::string_view in) {
  const Frame broken{Frame::broken, 0, {}, 0};
  if (in.size() < 2) return {};
  const auto first = static_cast<uint8_t>(in[0]), second = static_cast<uint8_t>(in[1]);
  if ((first & 0xf0) != 0x80 || (second & 0x80) != 0) return broken;
  const size_t extra = second == 126 ? 2 : second == 127 ? 8 : 0;
  const size_t header = 2 + extra;
  if (in.size() < header) return {};
  const uint64_t length = extra == 0 ? second : big_endian(in.substr(2, extra));
  if (length > frame_bytes_max) return broken;
  if (in.size() - header < length) return {};
  return {Frame::whole, static_cast<uint8_t>(first & 0x0f), in.substr(header, length), header + length};
}

// Clients mask; a key of zeros is one, and leaves the payload as it is.
inline std::string write_frame(uint8_t opcode, std::string_view payload) {
  std::string frame{static_cast<char>(0x80 | opcode)};
  const size_t extra = payload.size() < 126 ? 0 : payload.size() < 65'536 ? 2 : 8;
  frame += static_cast<char>(0x80 | (extra == 0 ? payload.size() : extra == 2 ? 126 : 127));
  for (size_t byte = extra; byte-- > 0;) frame += static_cast<char>(payload.size() >> (8 * byte));
  frame.append(4, '\0');
  return frame.append(payload);
}

// Reads a message's elements in order. After anything unexpected it has failed, and what it gives is empty.
class Cursor {
 public:
  explicit Cursor(std::string_view in) : in_(in) {}

  bool failed() const { return failed_; }

  size_t array() { return container(0x90, 0xdc); }
  size_t map() { return container(0x80, 0xde); }

  // Integers beyond 2^53 lose their last bits; no message has any.
  double number() {
    const uint8_t kind = byte();
    if (kind < 0x80) return kind;
    if (kind >= 0xe0) return static_cast<int8_t>(kind);
    if (kind == 0xca) return as<float, uint32_t>(raw(4));
    if (kind == 0xcb) return as<double, uint64_t>(raw(8));
    if (kind >= 0xcc && kind <= 0xcf) return static_cast<double>(raw(size_t{1} << (kind - 0xcc)));
    if (kind >= 0xd0 && kind <= 0xd3) {
      const size_t bytes = size_t{1} << (kind - 0xd0);
      const int unused = 64 - 8 * static_cast<int>(bytes);
      return static_cast<double>(static_cast<int64_t>(raw(bytes) << unused) >> unused);
    }
    failed_ = true;
    return 0;
  }

  std::string_view text() {
    const uint8_t kind = byte();
    if ((kind & 0xe0) == 0xa0) return take(kind & 0x1f);
    if (kind >= 0xd9 && kind <= 0xdb) return take(raw(size_t{1} << (kind - 0xd9)));
    failed_ = true;
    return {};
  }

 private:
  size_t container(uint8_t small, uint8_t large) {
    const uint8_t kind = byte();
    if ((kind & 0xf0) == small) return kind & 0x0f;
    if (kind == large) return raw(2);
    if (kind == large + 1) return raw(4);
    failed_ = true;
    return 0;
  }

  uint8_t byte() { return static_cast<uint8_t>(raw(1)); }
  uint64_t raw(size_t bytes) { return big_endian(take(bytes)); }

  std::string_view take(size_t bytes) {
    if (failed_ || in_.size() < bytes) {
      failed_ = true;
      return {};
    }
    const std::string_view taken = in_.substr(0, bytes);
    in_.remove_prefix(bytes);
    return taken;
  }

  template <typename Float, typename Word>
  static double as(uint64_t raw) {
    const Word word = static_cast<Word>(raw);
    Float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }

  std::string_view in_;
  bool failed_ = false;
};

}  // namespace relay
