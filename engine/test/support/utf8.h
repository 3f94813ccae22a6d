// UTF-8 by its definition, for tests of what decodes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace millrace::test {

constexpr const char* replacement = "\xef\xbf\xbd";

// Decodes UTF-8 as the Unicode standard recommends (and TextDecoder does): one U+FFFD for each longest prefix of a code point.
// Written apart from the releaser: by trying which encoded code point the bytes begin.
inline std::string decode(const std::string& bytes) {
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    const auto byte = [&](size_t i) { return at + i < bytes.size() ? static_cast<uint8_t>(bytes[at + i]) : 256u; };
    const uint32_t lead = byte(0);
    size_t length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
    const uint32_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80, high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    size_t good = length == 0 ? 0 : 1;
    while (good < length && byte(good) >= (good == 1 ? low : 0x80) && byte(good) <= (good == 1 ? high : 0xbf)) good++;
    text += good == length && length > 0 ? bytes.substr(at, length) : replacement;
    at += std::max<size_t>(1, good);
  }
  return text;
}

}  // namespace millrace::test
