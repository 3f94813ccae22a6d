#include "release.h"

#include <algorithm>
#include <utility>

namespace millrace {
namespace {

constexpr const char* replacement = "\xef\xbf\xbd";  // U+FFFD

// Bytes that follow a lead byte, or -1 if it cannot lead.
int followers(uint8_t lead) {
  if (lead < 0x80) return 0;
  if (lead >= 0xc2 && lead <= 0xdf) return 1;
  if (lead >= 0xe0 && lead <= 0xef) return 2;
  if (lead >= 0xf0 && lead <= 0xf4) return 3;
  return -1;
}

// Whether `byte` may stand second after `lead`: shuts out overlong forms, surrogates and what lies beyond U+10FFFF.
bool may_follow(uint8_t lead, uint8_t byte) {
  switch (lead) {
    case 0xe0:
      return byte >= 0xa0 && byte <= 0xbf;
    case 0xed:
      return byte >= 0x80 && byte <= 0x9f;
    case 0xf0:
      return byte >= 0x90 && byte <= 0xbf;
    case 0xf4:
      return byte >= 0x80 && byte <= 0x8f;
    default:
      return byte >= 0x80 && byte <= 0xbf;
  }
}

}  // namespace

void Released::append(const Released& more) {
  for (const uint32_t end : more.ends) ends.push_back(static_cast<uint32_t>(text.size()) + end);
  ids.insert(ids.end(), more.ids.begin(), more.ids.end());
  text += more.text;
  stopped |= more.stopped;
}

Released Released::take(size_t count) {
  if (count >= ids.size()) return std::exchange(*this, {});
  const auto first = static_cast<std::ptrdiff_t>(count);
  const uint32_t cut = count == 0 ? 0 : ends[count - 1];
  Released taken{.ids = {ids.begin(), ids.begin() + first}, .ends = {ends.begin(), ends.begin() + first}, .text = text.substr(0, cut)};
  ids.erase(ids.begin(), ids.begin() + first);
  ends.erase(ends.begin(), ends.begin() + first);
  text.erase(0, cut);
  for (uint32_t& end : ends) end -= cut;
  return taken;
}

Released Releaser::push(int32_t token, std::string_view bytes, bool may_stop) {
  const size_t before = pending_.size();
  pending_.push_back({token, open});
  for (const char byte : bytes) decode(static_cast<uint8_t>(byte), before);
  if (partial_.empty()) close(before + 1);
  if (!may_stop) return take(held_.size());

  if (const size_t stop = find_stop(); stop != open) {
    held_.resize(stop);
    close(pending_.size());
    for (Pending& pending : pending_) pending.end = std::min(pending.end, stop);
    Released released = take(stop);
    released.stopped = true;
    return released;
  }
  return take(safe_end());
}

Released Releaser::flush() {
  if (!partial_.empty()) held_ += replacement;
  partial_.clear();
  close(pending_.size());
  return take(held_.size());
}

// Adds one byte: to the code point that it continues, or, where it cannot, after the U+FFFD that this is then. The first `before` tokens end
// with that code point.
void Releaser::decode(uint8_t byte, size_t before) {
  if (partial_.empty()) return begin(byte);
  const auto lead = static_cast<uint8_t>(partial_[0]);
  const bool continues = partial_.size() == 1 ? may_follow(lead, byte) : (byte & 0xc0) == 0x80;
  if (continues) partial_ += static_cast<char>(byte);
  if (continues && static_cast<int>(partial_.size()) <= followers(lead)) return;
  held_ += continues ? partial_ : replacement;
  partial_.clear();
  close(before);
  if (!continues) begin(byte);
}

void Releaser::begin(uint8_t byte) {
  const int more = followers(byte);
  if (more > 0)
    partial_ = static_cast<char>(byte);
  else if (more == 0)
    held_ += static_cast<char>(byte);
  else
    held_ += replacement;
}

// A code point ended here: the first `count` tokens whose end was not known have theirs.
void Releaser::close(size_t count) {
  for (size_t i = 0; i < count; i++)
    if (pending_[i].end == open) pending_[i].end = held_.size();
}

// Releases the tokens that end at or before `end`, and their text.
Released Releaser::take(size_t end) {
  Released released;
  size_t count = 0, cut = 0;
  while (count < pending_.size() && pending_[count].end <= end) {
    released.ids.push_back(pending_[count].token);
    cut = pending_[count++].end;
    released.ends.push_back(static_cast<uint32_t>(cut));
  }
  released.text = held_.substr(0, cut);
  held_.erase(0, cut);
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
  for (Pending& pending : pending_)
    if (pending.end != open) pending.end -= cut;
  return released;
}

// Where in what is held the stop string begins that is completed first, or `open`. Of those completed together the longest counts: so
// the text does not depend on how it fell into tokens.
size_t Releaser::find_stop() const {
  size_t first = open, first_end = open;
  for (const std::string& stop : stops_) {
    const size_t found = held_.find(stop);
    if (found == std::string::npos || found + stop.size() > first_end) continue;
    first = found + stop.size() < first_end ? found : std::min(first, found);
    first_end = found + stop.size();
  }
  return first;
}

// Everything before this can no longer become part of a stop string.
size_t Releaser::safe_end() const {
  size_t safe = held_.size();
  for (const std::string& stop : stops_)
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > 0; length--)
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) {
        safe = std::min(safe, held_.size() - length);
        break;
      }
  return safe;
}

}  // namespace millrace
