#include "recorder.h"

#include <algorithm>
#include <cstdlib>

#include "test.h"
#include "utf8.h"

namespace millrace::test {
namespace {

// Each token's text ends where a code point does, not before the one before it, and the last one's where all of it does.
void check_ends(const Event& event) {
  REQUIRE(!event.ids.empty() && event.ends.size() == event.ids.size(), event.ends.size(), " ends of ", event.ids.size(), " tokens");
  CHECK(std::is_sorted(event.ends.begin(), event.ends.end()) && event.ends.back() == event.text.size(), show(event.ends), " of ", event.text.size(), " bytes");
  CHECK_EQUAL(decode(event.text), event.text);
  for (const uint32_t end : event.ends) CHECK(end >= event.text.size() || (static_cast<uint8_t>(event.text[end]) & 0xc0) != 0x80, "a token ends inside a code point, at ", end);
}

// For a test that has lost what it waits for; sanitizers on a busy machine are slow.
constexpr std::chrono::seconds wait_max{200};

}  // namespace

std::string Told::text() const {
  std::string all;
  for (const Event& event : events) all += event.text;
  return all;
}

std::vector<int32_t> Told::ids() const {
  std::vector<int32_t> all;
  for (const Event& event : events) all.insert(all.end(), event.ids.begin(), event.ids.end());
  return all;
}

std::vector<TokenLogprob> Told::logprobs() const {
  std::vector<TokenLogprob> all;
  for (const Event& event : events) all.insert(all.end(), event.logprobs.begin(), event.logprobs.end());
  return all;
}

const Event* Told::end() const { return !events.empty() && events.back().kind == EventKind::finished ? &events.back() : nullptr; }

void check_order(const Told& told, bool is_passed) {
  size_t at = 0;
  uint32_t seq = 0, place = 1u << 30;
  const auto check_tokens = [&] {
    for (; at < told.events.size() && told.events[at].kind == EventKind::tokens; at++) {
      check_ends(told.events[at]);
      seq += static_cast<uint32_t>(told.events[at].ids.size());
      CHECK_EQUAL(told.events[at].seq, seq);
    }
  };
  check_tokens();
  for (; at < told.events.size() && told.events[at].kind == EventKind::queued; at++) {
    CHECK((is_passed ? told.events[at].seq != place : told.events[at].seq < place) && told.events[at].seq >= 1, "place ", told.events[at].seq, " after ", place);
    place = told.events[at].seq;
  }
  if (at < told.events.size() && told.events[at].kind == EventKind::started) at++;
  check_tokens();
  REQUIRE(at + 1 == told.events.size() && told.events[at].kind == EventKind::finished, told.events.size(), " events, out of order at ", at);
  CHECK(told.events[at].seq >= seq);
}

Told Recorder::wait(uint32_t request, const std::function<bool(const Told&)>& done) {
  std::unique_lock lock(mutex_);
  const bool came = heard_.wait_for(lock, wait_max, [&] { return done(told_[request]); });
  REQUIRE(came, "request ", request, " was told ", told_[request].events.size(), " events, and not what was waited for");
  return told_[request];
}

Told Recorder::finished(uint32_t request) {
  return wait(request, [](const Told& told) { return told.end() != nullptr; });
}

Told Recorder::told(uint32_t request) {
  const std::lock_guard lock(mutex_);
  return told_[request];
}

void Recorder::hear(std::span<const Event> events) {
  if (also) also(events);
  const std::lock_guard lock(mutex_);
  for (const Event& event : events) told_[event.request].events.push_back(event);
  heard_.notify_all();
}

bool on_gpu() {
  const char* asked = std::getenv("MILLRACE_TEST_KERNELS");
  return asked != nullptr && std::string_view(asked) == "hopper";
}

std::unique_ptr<Engine> load(EngineOptions options, Recorder& recorder) {
  if (options.kernels == KernelSet::automatic) {
    options.kernels = on_gpu() ? KernelSet::hopper : KernelSet::cpu;
    options.deterministic = true;
  }
  options.plans_ahead |= std::getenv("MILLRACE_TEST_AHEAD") != nullptr;
  auto engine = Engine::load(options, recorder.listener());
  REQUIRE(engine.ok(), engine.message());
  return engine.take();
}

}  // namespace millrace::test
