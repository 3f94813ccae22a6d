#include "events.h"

#include <cassert>
#include <cstring>

namespace millrace {
namespace {

template <typename Value>
void put(std::vector<uint8_t>& bytes, Value value) {
  const size_t at = bytes.size();
  bytes.resize(at + sizeof(value));
  std::memcpy(bytes.data() + at, &value, sizeof(value));
}

}  // namespace

std::vector<uint8_t> flatten(std::span<const Event> events) {
  std::vector<uint8_t> bytes;
  for (const Event& event : events) {
    assert(event.ids.size() <= event_ids_max && event.ends.size() == event.ids.size());
    put(bytes, event.request);
    put(bytes, event.seq);
    put(bytes, static_cast<uint8_t>(event.kind));
    const size_t logprobs_each = event.ids.empty() ? 0 : event.logprobs.size() / event.ids.size();
    put(bytes, event.kind == EventKind::tokens ? static_cast<uint8_t>(logprobs_each) : static_cast<uint8_t>(event.finish));
    put(bytes, static_cast<uint16_t>(event.ids.size()));
    put(bytes, static_cast<uint32_t>(event.text.size()));
    if (event.kind == EventKind::finished) {
      put(bytes, event.queue_us);
      put(bytes, event.prefill_us);
      put(bytes, event.decode_us);
      put(bytes, event.prompt_tokens);
      put(bytes, event.cached_tokens);
    }
    for (const int32_t id : event.ids) put(bytes, id);
    for (const uint32_t end : event.ends) put(bytes, end);
    for (const TokenLogprob& each : event.logprobs) {
      put(bytes, each.token);
      put(bytes, each.logprob);
    }
    bytes.insert(bytes.end(), event.text.begin(), event.text.end());
    bytes.resize((bytes.size() + 3) & ~size_t{3});
  }
  return bytes;
}

}  // namespace millrace
