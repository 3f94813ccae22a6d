// From tokens to text that may be shown. Holds back bytes of an unfinished code point and text that may turn out to begin a stop
// string, and releases whole tokens only: a token is released when its text is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

struct Released {
  std::vector<int32_t> ids;    // the tokens released now; the last one's number is the event's seq
  std::vector<uint32_t> ends;  // [ids], where in `text` the text of each ends; the last is all of it
  std::string text;            // whole code points
  bool stopped = false;        // a stop string appeared; the text ends before it

  // What was released after this.
  void append(const Released& more);
  // Takes the first `count` tokens out, with their text.
  Released take(size_t count);
};

class Releaser {
 public:
  explicit Releaser(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // One more token with its bytes. After `stopped` nothing more may be pushed. Stop strings are sought in the text of tokens that may stop.
  Released push(int32_t token, std::string_view bytes, bool may_stop = true);
  // The answer has ended otherwise: all that is held comes out, an unfinished code point as U+FFFD.
  Released flush();

 private:
  void decode(uint8_t byte, size_t before);
  void begin(uint8_t byte);
  void close(size_t count);
  Released take(size_t end);
  size_t find_stop() const;
  size_t safe_end() const;

  std::vector<std::string> stops_;
  std::string held_;      // decoded text not yet released
  std::string partial_;   // bytes of a code point whose rest is to come
  struct Pending {
    int32_t token;
    size_t end;  // in held_, where the code point with the token's last byte ends; `open` while that is not known
  };
  static constexpr size_t open = static_cast<size_t>(-1);
  std::vector<Pending> pending_;
};

}  // namespace millrace
