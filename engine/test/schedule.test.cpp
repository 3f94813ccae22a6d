// Who runs next: random histories, in which every promise of the schedule is checked at every step (support/played.h).
#include "schedule/schedule.h"

#include <algorithm>
#include <utility>

#include "support/played.h"

using namespace millrace;
using test::Played;

namespace {

constexpr Deadlines voice = {.ttft_us = 50'000, .itl_us = 6'000, .wait_us_max = 0};
constexpr Deadlines chat = {.ttft_us = 200'000, .itl_us = 15'000, .wait_us_max = 0};
constexpr Deadlines batch = {.ttft_us = 6'000'000, .itl_us = 200'000};

Submission any_submission(test::Random& random) {
  const int kind = random.between(0, 9);
  Deadlines patient = chat;
  patient.wait_us_max = 3'000'000;
  return {.prompt_tokens = random.between(1, 120),
          .tokens_max = random.between(1, 30),
          .deadlines = kind < 3 ? voice : kind < 6 ? chat : kind < 8 ? patient : batch,
          .service = kind < 3 ? ServiceClass::voice : kind < 8 ? ServiceClass::chat : ServiceClass::batch,
          .tenant = static_cast<uint32_t>(random.between(0, 3)),
          .weight = static_cast<double>(random.between(1, 3))};
}

// Plays requests that arrive at some rate, of which one in twenty is cancelled at a random moment; the readers of some pause.
void play(Played& played, int requests, double arrivals_a_step, double pauses_a_step = 0) {
  double due = 0;
  std::vector<uint32_t> to_cancel, held;
  while (static_cast<int>(played.sent.size()) < requests) {
    for (due += 2 * arrivals_a_step * played.random.uniform(); due >= 1; due--) {
      const uint32_t request = played.submit(any_submission(played.random), played.random.between(1, 12));
      if (played.random.chance(0.05)) to_cancel.push_back(request);
    }
    if (!to_cancel.empty() && played.random.chance(0.3)) {
      const uint32_t request = to_cancel.back();
      to_cancel.pop_back();
      if (played.sent[request].is_live) played.remove(request, false);
    }
    if (!played.sent.empty() && played.random.chance(pauses_a_step)) {
      const auto request = static_cast<uint32_t>(played.random.between(0, static_cast<int>(played.sent.size()) - 1));
      if (played.sent[request].is_live) {
        played.hold(request, true);
        held.push_back(request);
      }
    }
    if (!held.empty() && (played.random.chance(pauses_a_step) || held.size() > 6)) {
      const auto at = static_cast<size_t>(played.random.between(0, static_cast<int>(held.size()) - 1));
      if (played.sent[held[at]].is_live) played.hold(held[at], false);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
    if (!played.step()) played.now_us += 1'000;
  }
  for (const uint32_t request : held)
    if (played.sent[request].is_live) played.hold(request, false);
  played.drain();
}

uint64_t fingerprint(const Played& played) {
  uint64_t mixed = 0;
  for (const test::Sent& sent : played.sent)
    for (const int64_t value : {sent.first_us, sent.ended_us, static_cast<int64_t>(sent.decision.verdict), sent.decision.wait_us + sent.decision.retry_after_us})
      mixed = (mixed ^ static_cast<uint64_t>(value)) * 0x100000001b3u;
  return mixed;
}

}  // namespace

TEST("random histories keep every promise, and all that was taken drains") {
  test::Random random;
  uint64_t parked = 0;
  for (int round = 0; round < 150; round++) {
    const int slots = random.between(1, 8);
    Played played({.waiting_max = random.between(1, 40), .slots_max = slots, .pages_max = random.between(2, 60), .page_need = {{{16 * random.between(1, 4)}}},
                   .step_tokens_max = slots + random.between(1, 128), .step_us_max = random.between(1'000, 100'000), .admits_all = random.chance(0.2)},
                  random.next());
    played.finds_prefixes = random.chance(0.5);
    play(played, 400, 0.1 + random.uniform(), random.chance(0.5) ? 0.2 : 0);
    parked += played.parked;
  }
  CHECK(parked > 100, parked, " times a sequence was parked");
}

TEST("a million requests pass through, and nothing leaks") {
  Played played({.waiting_max = 64, .slots_max = 48, .pages_max = 300, .page_need = {{{16}}}, .step_tokens_max = 512, .step_us_max = 20'000}, 1);
  play(played, 1'000'000, 8);
  int accepted = 0, queued = 0, refused = 0;
  for (const test::Sent& sent : played.sent)
    (sent.decision.verdict == Verdict::accepted ? accepted : sent.decision.verdict == Verdict::queued ? queued : refused)++;
  CHECK(accepted > 100'000 && queued > 10'000 && refused > 10'000, accepted, " accepted, ", queued, " queued, ", refused, " refused");
}

TEST("the same history has the same outcome, to the microsecond") {
  const auto played = [] {
    Played each({.waiting_max = 64, .slots_max = 24, .pages_max = 150, .page_need = {{{16}}}, .step_tokens_max = 256}, 7);
    play(each, 20'000, 0.8);
    return fingerprint(each);
  };
  CHECK_EQUAL(played(), played());
}

TEST("whoever is cancelled gets no row after it, and the slot goes to the next at once") {
  Played played({.slots_max = 1, .pages_max = 100}, 3);
  const auto decoding = played.submit({.prompt_tokens = 20, .tokens_max = 1000}, 1000);
  const auto queued = played.submit({.prompt_tokens = 20, .tokens_max = 10}, 10), next = played.submit({.prompt_tokens = 500, .tokens_max = 10}, 10);
  while (played.sent[decoding].sampled < 3) REQUIRE(played.step());
  played.remove(queued, false);
  played.remove(decoding, false);
  REQUIRE(played.step());
  CHECK(played.sent[next].slot >= 0 && played.sent[next].computed > 0 && played.sent[next].sampled == 0);
  played.remove(next, false);  // mid-prefill
  const auto last = played.submit({.prompt_tokens = 5, .tokens_max = 2}, 2);
  played.drain();
  CHECK_EQUAL(played.sent[last].sampled, 2);
  CHECK_EQUAL(played.schedule.remove(99, false, played.now_us), -1);
}

TEST("requests that may wait start in order of arrival") {
  Played played({.slots_max = 2, .pages_max = 1000}, 5);
  for (int i = 0; i < 20; i++) played.submit({.prompt_tokens = 10, .tokens_max = 10}, 10);
  played.drain();
  for (size_t i = 1; i < played.sent.size(); i++) CHECK(played.sent[i].first_us >= played.sent[i - 1].first_us, i, " overtook");
}

TEST("a stream whose reader takes nothing holds up no one, and is told apart when it is late") {
  Played played({.slots_max = 4, .pages_max = 1000}, 5);
  const auto stuck = played.submit({.prompt_tokens = 10, .tokens_max = 100}, 100), other = played.submit({.prompt_tokens = 10, .tokens_max = 100}, 100);
  while (played.sent[stuck].sampled < 5) REQUIRE(played.step());
  played.hold(stuck, true);
  while (played.sent[other].is_live) REQUIRE(played.step());
  CHECK_EQUAL(played.sent[stuck].sampled, 5);
  CHECK(!played.step());
  played.now_us += 60'000'000;
  played.hold(stuck, false);
  played.drain();
  CHECK_EQUAL(played.sent[stuck].sampled, 100);
  CHECK_EQUAL(played.schedule.misses().of(MissCause::reader), uint64_t{1});
}

TEST("whoever is held leaves its slot to those who wait, the longest held first, and goes on where it stood") {
  Played played({.slots_max = 2, .pages_max = 1000}, 5);
  const auto first = played.submit({.prompt_tokens = 10, .tokens_max = 100}, 100), second = played.submit({.prompt_tokens = 10, .tokens_max = 100}, 100);
  while (played.sent[first].sampled < 5 || played.sent[second].sampled < 5) REQUIRE(played.step());
  played.hold(second, true);
  played.now_us += 1'000;
  played.hold(first, true);
  CHECK(!played.step());
  CHECK_EQUAL(played.parked, uint64_t{0});  // nobody waits
  const auto third = played.submit({.prompt_tokens = 10, .tokens_max = 100}, 100);
  REQUIRE(played.step());
  CHECK(played.parked == 1 && played.sent[second].slot < 0 && played.sent[first].slot >= 0);
  played.hold(second, false);
  while (played.sent[second].sampled < 8) REQUIRE(played.step());
  CHECK(played.parked == 2 && played.sent[first].slot < 0);
  played.hold(first, false);
  played.drain();
  for (const auto request : {first, second, third}) CHECK_EQUAL(played.sent[request].sampled, 100);
}

// Two tenants of one class ask for more than there is, one ten times as much as the other; what they get stands in ratio of their weights.
TEST("tenants share by weight whatever they ask for") {
  for (const double weight : {1.0, 3.0}) {
    Played played({.waiting_max = 400, .slots_max = 16, .pages_max = 2000, .step_tokens_max = 256}, 11);
    std::array<uint64_t, 2> waiting{}, served{};
    for (int step = 0; step < 20'000; step++) {
      while (waiting[0] < 20 || waiting[1] < 200) {
        const uint32_t tenant = waiting[0] < 20 ? 0 : 1;
        played.submit({.prompt_tokens = 40, .tokens_max = 20, .deadlines = batch, .service = ServiceClass::batch, .tenant = tenant, .weight = tenant == 0 ? weight : 1}, 10);
        waiting[tenant]++;
      }
      REQUIRE(played.step());
      for (const uint32_t request : played.started) {
        waiting[played.sent[request].asked.tenant]--;
        served[played.sent[request].asked.tenant]++;
      }
    }
    const double ratio = static_cast<double>(served[0]) / static_cast<double>(served[1]);
    CHECK(served[1] > 1000 && ratio > 0.85 * weight && ratio < 1.15 * weight, served[0], " to ", served[1]);
  }
}

TEST("under a flood of tighter classes, batch still gets its part") {
  Played played({.waiting_max = 256, .slots_max = 16, .pages_max = 2000, .step_tokens_max = 256}, 13);
  uint64_t batch_done = 0, chats = 0;
  for (int step = 0; step < 40'000; step++) {
    for (int i = 0; i < 2; i++) played.submit({.prompt_tokens = 60, .tokens_max = 20, .deadlines = chat}, 12);
    if (step % 20 == 0) played.submit({.prompt_tokens = 60, .tokens_max = 20, .deadlines = batch, .service = ServiceClass::batch}, 12);
    REQUIRE(played.step());
    for (const uint32_t request : played.started) (played.sent[request].asked.service == ServiceClass::batch ? batch_done : chats)++;
  }
  CHECK(batch_done > 1'000, batch_done, " of 2000 batch requests started beside ", chats, " chats");
  int64_t longest_us = 0;
  for (const test::Sent& sent : played.sent)
    if (sent.asked.service == ServiceClass::batch && sent.first_us > 0) longest_us = std::max(longest_us, sent.first_us - sent.submitted_us);
  CHECK(longest_us < 20'000'000, longest_us);
}

TEST("a prompt gets on in every step, however quick the steps of the streams beside it") {
  Played played({.slots_max = 8, .pages_max = 400, .page_need = {{{16}}}}, 3);
  played.token_us = 200;  // so that what fits beside two decodes is less than a slice
  constexpr Deadlines relaxed = {.ttft_us = 2'000'000, .itl_us = 150'000};
  for (int stream = 0; stream < 2; stream++) played.submit({.prompt_tokens = 8, .tokens_max = 500, .deadlines = relaxed}, 500);
  for (int step = 0; step < 50; step++) played.step();
  const uint32_t late = played.submit({.prompt_tokens = 160, .tokens_max = 4, .deadlines = relaxed}, 4);
  int steps = 0;
  while (played.sent[late].sampled == 0 && steps < 100) steps += played.step();
  CHECK(steps <= 25, steps, " steps for 160 positions");
  played.drain();
}

TEST("slices of prompts fill up what the machine computes at once") {
  Played played({.slots_max = 16, .pages_max = 2000, .page_need = {{{16}}}, .step_tokens_max = 512, .tokens_multiple = 64}, 5);
  played.token_us = 1;  // so that more fit beside the streams than are computed at once
  constexpr Deadlines relaxed = {.ttft_us = 2'000'000, .itl_us = 150'000};
  for (int stream = 0; stream < 10; stream++) played.submit({.prompt_tokens = 8, .tokens_max = 500, .deadlines = relaxed}, 500);
  for (int step = 0; step < 60; step++) played.step();
  const uint32_t late = played.submit({.prompt_tokens = 3000, .tokens_max = 4, .deadlines = relaxed}, 4);
  int steps = 0, crooked = 0;
  while (played.sent[late].sampled == 0) {
    REQUIRE(played.step());
    steps++;
    crooked += played.step_tokens % 64 != 0;
  }
  CHECK(steps > 3 && crooked <= 1, crooked, " of ", steps, " steps are none of 64, 128, ... tokens");  // the last one has what is left
  played.drain();
}

TEST("prompts that no step gets to yet hold no slot") {
  Played played({.slots_max = 32, .pages_max = 2000, .page_need = {{{16}}}}, 6);
  constexpr Deadlines relaxed = {.ttft_us = 20'000'000, .itl_us = 150'000};
  for (int stream = 0; stream < 2; stream++) played.submit({.prompt_tokens = 8, .tokens_max = 500, .deadlines = relaxed}, 500);
  for (int step = 0; step < 60; step++) played.step();
  for (int late = 0; late < 20; late++) REQUIRE(played.sent[played.submit({.prompt_tokens = 100, .tokens_max = 4, .deadlines = relaxed}, 4)].is_live);
  int most = 0, waited = 0;
  for (int step = 0; step < 10; step++) {
    REQUIRE(played.step());
    int pending = 0;
    for (const test::Sent& sent : played.sent) pending += sent.is_started && !sent.is_decoding ? sent.asked.prompt_tokens - sent.computed : 0;
    most = std::max(most, pending);
    waited = std::max(waited, played.schedule.waiting_count());
  }
  // Before its own slice a step has its tokens and less than one prompt more.
  CHECK(most < 256 + 100 && waited > 10, most, " tokens of prompts in slots, ", waited, " prompts without one");
  played.drain();
}

TEST("pages that several were promised make room for others, as long as they do") {
  int slots = 0;
  Schedule schedule({.slots_max = 8, .pages_max = 20, .page_need = {{{16}}}}, [&](uint32_t, int) { return Taken{slots++, 0}; });
  std::vector<uint32_t> started;
  for (uint32_t request = 0; request < 4; request++)
    CHECK(schedule.submit({.request = request, .prompt_tokens = 150, .tokens_max = 10, .deadlines = batch, .service = ServiceClass::voice}, 1).verdict == Verdict::accepted);
  const auto running_with = [&](int pages) {
    schedule.shared(pages);
    schedule.plan(2, started);
    return schedule.running_count();
  };
  for (const auto& [pages, running] : {std::pair(0, 2), {9, 2}, {10, 3}, {19, 3}}) CHECK_EQUAL(running_with(pages), running);
  // It went with whoever shared them.
  schedule.remove(0, true, 3);
  CHECK_EQUAL(running_with(9), 2);
  CHECK_EQUAL(running_with(10), 3);
}
