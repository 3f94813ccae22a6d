#include "live.h"

#include <algorithm>

#include "events.h"

namespace millrace {

Live::Live(Request taken, const std::vector<int32_t>& stop_tokens, uint64_t now_us)
    : request(std::move(taken)), tokens(request.prompt), sampler(request.sampling, request.prompt), releaser(request.stops), submitted_us(now_us) {
  tokens.insert(tokens.end(), request.continued.begin(), request.continued.end());
  if (request.grammar != nullptr) {
    constraint = request.grammar->begin();
    sampler.allow(&constraint->mask());
  }
  if (!request.ignores_end) sampler.bar(stop_tokens, request.tokens_min);
}

std::optional<Finish> Live::take(int32_t token, const Vocabulary& vocabulary, Released& released_now) {
  sampler.accept(token);
  seq++;
  const bool may_stop = seq > static_cast<uint32_t>(request.tokens_min);
  if (may_stop && !request.ignores_end && std::binary_search(vocabulary.stops.begin(), vocabulary.stops.end(), token)) return Finish::stop;
  released_now.append(releaser.push(token, vocabulary.bytes[static_cast<size_t>(token)], may_stop));
  if (released_now.stopped) return Finish::stop;
  if (seq == static_cast<uint32_t>(request.tokens_max)) return Finish::length;
  return std::nullopt;
}

std::optional<Finish> Live::take_up(const Vocabulary& vocabulary, Released& released_now) {
  for (const int32_t token : request.continued)
    if (const std::optional<Finish> end = take(token, vocabulary, released_now)) return end;
  return std::nullopt;
}

Event Live::release(Released& now) {
  const size_t brought = request.continued.size() > released ? request.continued.size() - released : 0;
  Released told = now.take(std::min(event_ids_max, brought > 0 ? brought : now.ids.size()));
  const size_t count = told.ids.size();
  released += static_cast<uint32_t>(count);
  Event event{.request = request.id, .seq = released, .kind = EventKind::tokens,
              .ids = std::move(told.ids), .ends = std::move(told.ends), .text = std::move(told.text)};
  if (brought > 0) return event;
  const auto end = logprobs.begin() + static_cast<std::ptrdiff_t>(count * static_cast<size_t>(request.sampling.logprobs + 1));
  event.logprobs.assign(logprobs.begin(), end);
  logprobs.erase(logprobs.begin(), end);
  return event;
}

}  // namespace millrace
