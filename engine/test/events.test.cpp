// A step's events as bytes: what binding/events.ts reads.
#include "events.h"

#include <cstring>

#include "support/test.h"

using namespace millrace;

namespace {

template <typename Value>
Value read(const std::vector<uint8_t>& bytes, size_t at) {
  Value value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

}  // namespace

TEST("tokens are written as header, ids, their ends, text and padding to 4 bytes") {
  const Event event{.request = 7, .seq = 9, .kind = EventKind::tokens, .ids = {11, -1}, .ends = {3, 6}, .text = "h\xc3\xa9llo"};
  const std::vector<uint8_t> bytes = flatten(std::span(&event, 1));
  CHECK_EQUAL(bytes.size(), 16u + 8 + 8 + 8);
  CHECK_EQUAL(read<uint32_t>(bytes, 0), 7u);
  CHECK_EQUAL(read<uint32_t>(bytes, 4), 9u);
  CHECK_EQUAL(int{bytes[8]}, 2);
  CHECK_EQUAL(int{read<uint16_t>(bytes, 10)}, 2);
  CHECK_EQUAL(read<uint32_t>(bytes, 12), 6u);
  CHECK_EQUAL(read<int32_t>(bytes, 16), 11);
  CHECK_EQUAL(read<int32_t>(bytes, 20), -1);
  CHECK_EQUAL(read<uint32_t>(bytes, 24), 3u);
  CHECK_EQUAL(read<uint32_t>(bytes, 28), 6u);
  CHECK_EQUAL(std::string(bytes.begin() + 32, bytes.begin() + 38), event.text);
  CHECK_EQUAL(int{bytes[38]} + int{bytes[39]}, 0);
}

TEST("an end is written as header and five numbers, and records follow one another") {
  const std::vector<Event> events = {
      {.request = 1, .seq = 4, .kind = EventKind::queued},
      {.request = 2, .kind = EventKind::started},
      {.request = 3, .seq = 5, .kind = EventKind::finished, .finish = Finish::failed, .queue_us = 10, .prefill_us = 20, .decode_us = 30, .prompt_tokens = 40, .cached_tokens = 50},
  };
  const std::vector<uint8_t> bytes = flatten(events);
  CHECK_EQUAL(bytes.size(), 3u * 16 + 20);
  for (size_t i = 0; i < events.size(); i++) {
    CHECK_EQUAL(read<uint32_t>(bytes, 16 * i), events[i].request);
    CHECK_EQUAL(int{bytes[16 * i + 8]}, static_cast<int>(events[i].kind));
  }
  CHECK_EQUAL(read<uint32_t>(bytes, 4), 4u);
  CHECK_EQUAL(int{bytes[41]}, 4);
  for (size_t i = 0; i < 5; i++) CHECK_EQUAL(read<uint32_t>(bytes, 48 + 4 * i), 10 * (static_cast<uint32_t>(i) + 1));
}

TEST("an event of as many tokens as a record can count is written whole") {
  Event event{.request = 1, .seq = event_ids_max, .kind = EventKind::tokens, .ids = std::vector<int32_t>(event_ids_max, 7), .ends = std::vector<uint32_t>(event_ids_max, 0)};
  const std::vector<uint8_t> bytes = flatten(std::span(&event, 1));
  CHECK_EQUAL(bytes.size(), 16u + 8 * event_ids_max);
  CHECK_EQUAL(size_t{read<uint16_t>(bytes, 10)}, event_ids_max);
}

TEST("no events are no bytes") { CHECK_EQUAL(flatten({}).size(), 0u); }

TEST("log-probabilities stand between ends and text, with their number in the header") {
  const Event event{.request = 1, .seq = 2, .kind = EventKind::tokens, .ids = {5, 6}, .ends = {0, 1}, .text = "x", .logprobs = {{5, -0.5f}, {9, -0.25f}, {6, -1}, {6, -1}}};
  const std::vector<uint8_t> bytes = flatten(std::span(&event, 1));
  CHECK_EQUAL(bytes.size(), 16u + 8 + 8 + 32 + 4);
  CHECK_EQUAL(int{bytes[9]}, 2);
  for (size_t i = 0; i < 4; i++) {
    CHECK_EQUAL(read<int32_t>(bytes, 32 + 8 * i), event.logprobs[i].token);
    CHECK_EQUAL(read<float>(bytes, 36 + 8 * i), event.logprobs[i].logprob);
  }
  CHECK_EQUAL(bytes[64], uint8_t{'x'});
}

TEST("why a request failed follows the numbers of its end") {
  const std::vector<Event> events = {{.request = 3, .kind = EventKind::finished, .finish = Finish::failed, .text = "why"}, {.request = 4, .kind = EventKind::started}};
  const std::vector<uint8_t> bytes = flatten(events);
  CHECK_EQUAL(bytes.size(), 16u + 20 + 4 + 16);
  CHECK_EQUAL(read<uint32_t>(bytes, 12), 3u);
  CHECK_EQUAL(std::string(bytes.begin() + 36, bytes.begin() + 39), std::string("why"));
  CHECK_EQUAL(read<uint32_t>(bytes, 40), 4u);
}
