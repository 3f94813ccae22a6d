#include "release.h"

#include <algorithm>

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

Released Releaser::push(int32_t token, std::string_view bytes, bool may_stop) {
  const size_t before = pending_.size();
  pending_.push_back({token, open});
  for (const char byte : bytes)
    if (decode(static_cast<uint8_t>(byte))) close(before);
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

// Adds one byte: to the code point it completes, to the one it begins or continues, or as U+FFFD where it fits nowhere. Returns whether
// what earlier bytes had begun is over, completed or not.
bool Releaser::decode(uint8_t byte) {
  if (!partial_.empty()) {
    const bool second = partial_.size() == 1;
    if (second ? may_follow(static_cast<uint8_t>(partial_[0]), byte) : (byte & 0xc0) == 0x80) {
      partial_ += static_cast<char>(byte);
      if (static_cast<int>(partial_.size()) <= followers(static_cast<uint8_t>(partial_[0]))) return false;
      held_ += partial_;
      partial_.clear();
      return true;
    }
    held_ += replacement;
    partial_.clear();
    begin(byte);
    return true;
  }
  begin(byte);
  return partial_.empty();
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
