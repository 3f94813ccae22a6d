// Properties of the schedule by random search: histories of submissions of every kind, cancellations wherever a request stands, readers
// that take nothing for a while, steps that take what they like, stalls, machines that change speed, slots that are not given, prompts that
// are cached and rows that are lost. What must hold at every step is checked by support/played.h, what must hold between steps here.
#include <algorithm>
#include <array>
#include <set>

#include "support/played.h"

using namespace millrace;
using test::Played;
using test::Sent;

namespace {

struct Rates {
  double arrivals, cancels, holds, releases;  // a step
};

class History {
 public:
  History(const ScheduleLimits& limits, uint64_t state, const Rates& rates) : random_(state), rates_(rates), played_(limits, random_.next()) {
    played_.disturbances = {.noise = 0.5 * random_.uniform(), .stalls = random_.chance(0.5) ? 0.02 : 0, .slot_refusals = random_.chance(0.3) ? 0.3 : 0,
                            .lost_rows = random_.chance(0.3) ? 0.002 : 0};
    played_.finds_prefixes = random_.chance(0.5);
  }

  void play(int requests) {
    while (static_cast<int>(played_.sent.size()) < requests) {
      for (due_ += 2 * rates_.arrivals * random_.uniform(); due_ >= 1; due_--) submit();
      if (random_.chance(rates_.cancels)) cancel();
      if (random_.chance(rates_.holds)) hold(true);
      if (random_.chance(rates_.releases)) hold(false);
      if (random_.chance(0.002)) played_.slowness = 0.5 + 2 * random_.uniform();
      step();
      check_counts();
    }
    played_.drain();
    check_counts();
  }

  const Played& played() const { return played_; }

 private:
  void submit() {
    static constexpr std::array<int64_t, 5> waits_us = {0, 1'000, 500'000, 20'000'000, std::numeric_limits<int64_t>::max()};
    const auto us = [this](double low, double high) { return static_cast<int64_t>(low * std::pow(high / low, random_.uniform())); };
    // Some are larger than all memory, and must be refused whatever they would wait.
    const double memory = played_.limits.pages_max * played_.limits.page_need.groups[0].page_tokens, prompt_max = random_.chance(0.02) ? 1.2 * memory : std::min(memory, 300.0);
    Submission asked{.prompt_tokens = static_cast<int>(us(1, prompt_max)), .tokens_max = static_cast<int>(us(1, 60)),
                     .deadlines = {.ttft_us = us(1'000, 1e7), .itl_us = us(500, 1e6), .wait_us_max = waits_us[static_cast<size_t>(random_.between(0, 4))]},
                     .service = static_cast<ServiceClass>(random_.between(0, service_classes - 1)), .tenant = static_cast<uint32_t>(random_.between(0, 5)),
                     .weight = 0.5 + random_.uniform()};
    const uint32_t request = played_.submit(asked, random_.between(1, 40));
    if (played_.sent[request].is_live) live_.push_back(request);
  }

  // One of those under way, wherever it stands; none where there is none.
  Sent* any() {
    std::erase_if(live_, [this](uint32_t request) { return !played_.sent[request].is_live; });
    return live_.empty() ? nullptr : &played_.sent[live_[static_cast<size_t>(random_.between(0, static_cast<int>(live_.size()) - 1))]];
  }
  void cancel() {
    if (const Sent* sent = any()) played_.remove(sent->asked.request, false);
  }
  void hold(bool is_held) {
    if (const Sent* sent = any()) played_.hold(sent->asked.request, is_held);
  }

  void step() {
    const bool is_idle = !played_.step();
    const bool is_excused = played_.live == 0 || played_.held > 0 || played_.is_refused;
    idle_ = is_idle && !is_excused ? idle_ + 1 : 0;
    // Nobody waits for anything but this machine: it has no reason to do nothing.
    REQUIRE(idle_ < 3, played_.live, " requests are under way, and nothing was planned");
    if (is_idle) played_.now_us += 1'000;
  }

  void check_counts() {
    const Schedule& schedule = played_.schedule;
    std::array<int, service_classes> waiting{}, resumed{};
    int running = 0;
    for (const uint32_t request : live_) {
      const Sent& sent = played_.sent[request];
      if (!sent.is_live) continue;
      if (sent.is_started) {
        running++;
      } else if (!sent.is_parked) {
        waiting[static_cast<size_t>(sent.asked.service)]++;
        resumed[static_cast<size_t>(sent.asked.service)] += sent.parkings > 0;
      }
      CHECK(schedule.contains(request));
    }
    CHECK_EQUAL(schedule.running_count(), running);
    CHECK(running <= played_.limits.slots_max, running, " have a slot of ", played_.limits.slots_max);
    for (int service = 0; service < service_classes; service++) {
      const int counted = schedule.waiting_count(static_cast<ServiceClass>(service));
      CHECK_EQUAL(counted, waiting[static_cast<size_t>(service)]);
      // Who was parked comes back whoever waits.
      CHECK(counted - resumed[static_cast<size_t>(service)] <= played_.limits.waiting_max, counted, " wait, over ", played_.limits.waiting_max);
    }
    const std::vector<uint32_t> places = schedule.waiting();
    CHECK_EQUAL(static_cast<int>(places.size()), schedule.waiting_count());
    CHECK_EQUAL(std::set<uint32_t>(places.begin(), places.end()).size(), places.size());
    for (const uint32_t request : places) CHECK(played_.sent[request].is_live && !played_.sent[request].is_started, "request ", request, " has a place and does not wait");
  }

  test::Random random_;
  Rates rates_;
  Played played_;
  std::vector<uint32_t> live_;  // and some that have ended
  double due_ = 0;
  int idle_ = 0;  // steps in a row
};

ScheduleLimits any_limits(test::Random& random) {
  const int slots = random.between(1, 12);
  return {.waiting_max = random.between(1, 30), .slots_max = slots, .pages_max = random.between(1, 80), .page_need = {.groups = {{.page_tokens = 16 * random.between(1, 4)}}},
          .step_tokens_max = slots + random.between(1, 200), .step_us_max = random.between(1'000, 100'000), .admits_all = random.chance(0.15)};
}

uint64_t fingerprint(const Played& played) {
  uint64_t mixed = 0;
  for (const Sent& sent : played.sent)
    for (const int64_t value : {sent.first_us, sent.ended_us, static_cast<int64_t>(sent.decision.verdict), sent.decision.wait_us, sent.decision.retry_after_us})
      mixed = (mixed ^ static_cast<uint64_t>(value)) * 0x100000001b3u;
  return mixed;
}

}  // namespace

TEST("whatever happens, no slot and no page is promised twice, and each request is answered and ends once") {
  test::Random random;
  for (int round = 0; round < 300; round++) {
    const Rates rates{0.05 + 1.5 * random.uniform(), 0.1 * random.uniform(), 0.1 * random.uniform(), 0.15};
    History history(any_limits(random), random.next(), rates);
    history.play(300);
    for (const Sent& sent : history.played().sent) {
      REQUIRE(!sent.is_live);
      // Who ended of itself had its whole answer; who was refused had nothing.
      if (sent.decision.verdict == Verdict::refused) CHECK(!sent.is_started && sent.sampled == 0);
      CHECK(sent.sampled <= sent.length);
    }
  }
}

TEST("every request that is not cancelled gets its whole answer") {
  test::Random random;
  for (int round = 0; round < 150; round++) {
    History history(any_limits(random), random.next(), {0.05 + 1.5 * random.uniform(), 0, 0.1 * random.uniform(), 0.15});
    const bool is_lossless = history.played().disturbances.lost_rows == 0;
    history.play(300);
    for (const Sent& sent : history.played().sent)
      if (is_lossless && sent.decision.verdict != Verdict::refused) CHECK_EQUAL(sent.sampled, sent.length);
  }
}

TEST("a million disturbed requests pass in seconds, and the same seed is the same history") {
  const auto played = [](int requests) {
    History history({.waiting_max = 64, .slots_max = 48, .pages_max = 600, .step_tokens_max = 512, .step_us_max = 20'000}, 2, {2, 0.3, 0.05, 0.1});
    history.play(requests);
    const auto taken = std::ranges::count_if(history.played().sent, [](const Sent& sent) { return sent.decision.verdict != Verdict::refused; });
    CHECK(taken > requests / 10, taken, " of ", requests, " were not refused");
    return fingerprint(history.played());
  };
  CHECK_EQUAL(played(20'000), played(20'000));
  played(1'000'000);
}
