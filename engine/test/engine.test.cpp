// The engine on tiny models: what a request is told and when, alone and among others, to the end, cancelled and closed.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>

#include "format/vocabulary.h"
#include "support/random.h"
#include "support/recorder.h"
#include "support/test.h"
#include "support/tiny_model.h"
#include "support/utf8.h"

using namespace millrace;
using test::check_order;
using test::Recorder;
using test::TemporaryFile;
using test::Told;

namespace {

// A loaded tiny model, its file and its listener.
struct Running {
  test::Random random;
  TemporaryFile path;
  Recorder recorder;
  std::unique_ptr<Engine> engine;

  explicit Running(const test::TinyShape& shape = {}, EngineOptions options = {}) : path(tiny_model(shape, random)) {
    options.path = path.path();
    if (options.threads == 0) options.threads = 2;
    if (options.slots == 32) options.slots = 4;
    engine = test::load(options, recorder);
  }

  void submit(const Request& request) {
    const Status status = engine->submit(request);
    REQUIRE(status.ok(), status.message());
  }
  std::vector<int32_t> prompt(int length) { return random.tokens(length, 256); }
};

// A context and an answer so long that no test sees their end.
constexpr int forever = 200000;
const test::TinyShape endless = {.layers = 1, .context = 1 << 20};

EventKind kind_at(const Told& told, size_t index) { return index < told.events.size() ? told.events[index].kind : EventKind::finished; }

bool has_tokens(const Told& told) {
  return std::any_of(told.events.begin(), told.events.end(), [](const Event& event) { return event.kind == EventKind::tokens; });
}

}  // namespace

TEST("an answer of tokens_max tokens ends by length, with its numbers") {
  Running running;
  running.submit({.id = 5, .prompt = running.prompt(20), .tokens_max = 30});
  const Told told = running.recorder.finished(5);
  check_order(told);
  CHECK(kind_at(told, 0) == EventKind::started);
  CHECK(told.end()->finish == Finish::length);
  CHECK_EQUAL(told.end()->seq, 30u);
  CHECK_EQUAL(told.end()->prompt_tokens, 20u);
  CHECK_EQUAL(told.ids().size(), 30u);
  running.engine->close();
  const EngineStats stats = running.engine->stats();
  CHECK_EQUAL(stats.tokens, uint64_t{30});
  CHECK_EQUAL(stats.prompt_tokens, uint64_t{20});
  CHECK_EQUAL(stats.running + stats.waiting, 0);
}

// Token by token from teacher-forced logits: the whole machinery against the simplest loop there is.
TEST("a greedy answer is the likeliest token, each time") {
  Running running;
  const std::vector<int32_t> prompt = running.prompt(9);
  running.submit({.id = 1, .prompt = prompt, .tokens_max = 12});
  const std::vector<int32_t> answer = running.recorder.finished(1).ids();
  REQUIRE(answer.size() == 12);
  std::vector<int32_t> tokens = prompt;
  tokens.insert(tokens.end(), answer.begin(), answer.end() - 1);
  auto logits = running.engine->evaluate(tokens, 5);
  REQUIRE(logits.ok(), logits.message());
  for (size_t i = 0; i < answer.size(); i++) {
    const auto row = logits.value().begin() + static_cast<std::ptrdiff_t>((prompt.size() - 1 + i) * 300);
    CHECK_EQUAL(answer[i], static_cast<int32_t>(std::max_element(row, row + 300) - row));
  }
}

TEST("eight answers at once are each what they are alone, sampled or greedy") {
  Running running({.type = Type::q4_1}, {.slots = 8});
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 8; i++)
    requests.push_back({.id = i, .prompt = running.prompt(running.random.between(1, 120)), .tokens_max = running.random.between(1, 40),
                        .sampling = {.temperature = i % 2 == 0 ? 0 : 1.3f, .seed = i}});
  std::vector<std::vector<int32_t>> alone;
  for (Request request : requests) {
    request.id += 100;
    running.submit(request);
    alone.push_back(running.recorder.finished(request.id).ids());
  }
  for (const Request& request : requests) running.submit(request);
  for (const Request& request : requests) {
    const Told told = running.recorder.finished(request.id);
    check_order(told);
    CHECK_EQUAL(told.ids(), alone[request.id]);
  }
}

TEST("an answer's text is its tokens' bytes, whole code points at a time") {
  Running running({.vocabulary = 256});
  running.submit({.id = 1, .prompt = running.prompt(4), .tokens_max = 200, .sampling = {.temperature = 5, .seed = 3}});
  const Told told = running.recorder.finished(1);
  CHECK_EQUAL(told.ids().size(), 200u);
  std::string bytes;
  for (const int32_t id : told.ids()) bytes += running.engine->vocabulary().bytes[static_cast<size_t>(id)];
  CHECK_EQUAL(told.text(), test::decode(bytes));
  for (const Event& event : told.events) CHECK_EQUAL(test::decode(event.text), event.text);
}

TEST("an end-of-turn token ends the answer, counted but not shown") {
  Running running({.vocabulary = 260, .end_token = true});
  CHECK_EQUAL(running.engine->info().stop_tokens, std::vector<int32_t>{259});
  bool ended = false;
  for (uint32_t id = 0; id < 40 && !ended; id++) {
    running.submit({.id = id, .prompt = running.prompt(3), .tokens_max = 500, .sampling = {.temperature = 3, .seed = id}});
    const Told told = running.recorder.finished(id);
    check_order(told);
    if (told.end()->finish != Finish::stop) continue;
    ended = true;
    const std::vector<int32_t> ids = told.ids();
    CHECK_EQUAL(static_cast<size_t>(told.end()->seq), ids.size() + 1);
    CHECK(std::find(ids.begin(), ids.end(), 259) == ids.end());
  }
  CHECK(ended, "at temperature 3 one of 260 tokens should come up in 20,000");
}

TEST("a stop string ends the answer before it, though it spans tokens") {
  Running running({.vocabulary = 256});
  const Request request{.id = 1, .prompt = running.prompt(6), .tokens_max = 60, .sampling = {.temperature = 4, .seed = 11}};
  running.submit(request);
  const std::string whole = running.recorder.finished(1).text();
  // Four bytes of ASCII out of its middle, so that it falls on several tokens of one byte.
  size_t at = 5;
  const auto plain = [&](size_t i) { return std::all_of(whole.begin() + static_cast<std::ptrdiff_t>(i), whole.begin() + static_cast<std::ptrdiff_t>(i) + 2, [](char c) { return c > 0; }); };
  while (at + 2 < whole.size() && !plain(at)) at++;
  REQUIRE(at + 2 < whole.size(), "no two bytes of ASCII follow one another in ", test::show(whole));
  Request stopped = request;
  stopped.id = 2;
  stopped.stops = {whole.substr(at, 2)};
  running.submit(stopped);
  const Told told = running.recorder.finished(2);
  check_order(told);
  CHECK(told.end()->finish == Finish::stop);
  CHECK_EQUAL(told.text(), whole.substr(0, whole.find(stopped.stops[0])));
  CHECK_EQUAL(static_cast<size_t>(told.end()->seq), told.ids().size());
}

TEST("a request cancelled in the queue, in its prompt or in its answer ends so, and nothing follows") {
  Running running(endless, {.context_tokens = 1 << 19, .slots = 1});
  running.submit({.id = 1, .prompt = running.prompt(10), .tokens_max = forever});
  running.recorder.wait(1, has_tokens);
  running.submit({.id = 2, .prompt = running.prompt(10), .tokens_max = 10});
  running.recorder.wait(2, [](const Told& told) { return !told.events.empty(); });
  CHECK(kind_at(running.recorder.told(2), 0) == EventKind::queued);
  running.engine->cancel(2);
  const Told queued = running.recorder.finished(2);
  check_order(queued);
  CHECK(queued.end()->finish == Finish::cancelled && queued.end()->seq == 0);

  running.engine->cancel(1);
  const Told decoding = running.recorder.finished(1);
  check_order(decoding);
  CHECK(decoding.end()->finish == Finish::cancelled);
  CHECK(decoding.end()->seq >= 1 && decoding.end()->seq < forever, decoding.end()->seq);

  // The engine calls back between steps: a cancel from there meets the next prompt half-way.
  std::atomic<bool> cancelled{false};
  running.recorder.also = [&](std::span<const Event> events) {
    for (const Event& event : events)
      if (event.request == 3 && event.kind == EventKind::started && !cancelled.exchange(true)) running.engine->cancel(3);
  };
  running.submit({.id = 3, .prompt = running.prompt(1000), .tokens_max = 5});
  const Told prefilling = running.recorder.finished(3);
  check_order(prefilling);
  CHECK(prefilling.end()->finish == Finish::cancelled && prefilling.end()->seq == 0);
  running.submit({.id = 4, .prompt = running.prompt(10), .tokens_max = 3});
  CHECK(running.recorder.finished(4).end()->finish == Finish::length);
  running.engine->cancel(3);
  running.engine->cancel(12345);
  running.engine->close();
  for (const uint32_t id : {1u, 2u, 3u, 4u}) check_order(running.recorder.told(id));
  CHECK(running.recorder.told(12345).events.empty());
}

TEST("whoever waits is told each better place, down to the first") {
  Running running({.layers = 1}, {.slots = 1});
  for (uint32_t id = 1; id <= 5; id++) running.submit({.id = id, .prompt = running.prompt(4), .tokens_max = 20});
  for (uint32_t id = 1; id <= 5; id++) {
    const Told told = running.recorder.finished(id);
    check_order(told);
    CHECK(told.end()->finish == Finish::length);
  }
  const Told last = running.recorder.told(5);
  size_t places = 0;
  while (kind_at(last, places) == EventKind::queued) places++;
  CHECK(places >= 1 && last.events[places - 1].seq == 1, places, " places were told");
}

TEST("closing with work in flight ends each request once, and again is nothing") {
  for (int round = 0; round < 5; round++) {
    Running running(endless, {.context_tokens = 1 << 18, .slots = 2});
    for (uint32_t id = 1; id <= 6; id++) running.submit({.id = id, .prompt = running.prompt(200), .tokens_max = forever});
    if (round > 1) running.recorder.wait(1, has_tokens);
    std::thread other([&] { running.engine->close(); });
    running.engine->close();
    other.join();
    running.engine->close();
    for (uint32_t id = 1; id <= 6; id++) {
      const Told told = running.recorder.told(id);
      check_order(told);
      CHECK(told.end()->finish == Finish::closed);
    }
    CHECK_EQUAL(running.engine->submit({.id = 9, .prompt = {1}, .tokens_max = 1}).message(), std::string("the engine is closed"));
    CHECK_EQUAL(running.engine->evaluate({1}, 1).message(), std::string("the engine is closed"));
    running.engine->cancel(1);
    CHECK_EQUAL(running.engine->stats().running, 0);
  }
}

TEST("an engine destroyed with work in flight ends it first") {
  Running running(endless, {.context_tokens = 1 << 18, .slots = 2});
  for (uint32_t id = 1; id <= 4; id++) running.submit({.id = id, .prompt = running.prompt(300), .tokens_max = forever});
  running.engine.reset();
  for (uint32_t id = 1; id <= 4; id++) CHECK(running.recorder.told(id).end() != nullptr);
}

TEST("requests from several threads at once are all answered") {
  Running running({.layers = 1}, {.slots = 3});
  std::vector<std::thread> callers;
  std::atomic<int> refused{0};
  for (uint32_t caller = 0; caller < 4; caller++)
    callers.emplace_back([&, caller] {
      test::Random random(caller);
      for (uint32_t i = 0; i < 10; i++) {
        const uint32_t id = caller * 100 + i;
        if (!running.engine->submit({.id = id, .prompt = random.tokens(random.between(1, 50), 256), .tokens_max = random.between(1, 20)}).ok()) refused++;
        if (random.chance(0.3)) running.engine->cancel(id);
        (void)running.engine->stats();
      }
    });
  const auto logits = running.engine->evaluate({1, 2, 3}, 2);
  CHECK(logits.ok());
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(refused.load(), 0);
  for (uint32_t caller = 0; caller < 4; caller++)
    for (uint32_t i = 0; i < 10; i++) check_order(running.recorder.finished(caller * 100 + i));
}

// A deadline that no machine can keep: the first is taken on trust, since nothing was measured yet.
TEST("what cannot be promised is refused at once with the time to retry, or waits where it may") {
  Running running({.layers = 1}, {.slots = 2});
  running.submit({.id = 1, .prompt = running.prompt(30), .tokens_max = 60});
  running.recorder.finished(1);
  CHECK(running.engine->stats().step_costs.step_us + running.engine->stats().step_costs.row_us + running.engine->stats().step_costs.token_us +
            running.engine->stats().step_costs.sample_us + running.engine->stats().step_costs.context_us > 0);

  Request request{.id = 2, .prompt = running.prompt(30), .tokens_max = 5, .service = ServiceClass::voice, .deadlines = {.ttft_us = 1, .itl_us = 1000, .wait_us_max = 0}};
  Decision decision;
  const Status status = running.engine->submit(request, &decision);
  CHECK(!status.ok());
  CHECK(decision.verdict == Verdict::refused && decision.retry_after_us > 0, decision.retry_after_us);
  CHECK(status.message().find("cannot be promised now") != std::string::npos, status.message());

  request.deadlines.wait_us_max = 60'000'000;
  CHECK(running.engine->submit(request, &decision).ok());
  CHECK(decision.verdict == Verdict::queued && decision.wait_us > 0, decision.wait_us);
  CHECK(running.recorder.finished(2).end()->finish == Finish::length);
  const auto misses = running.engine->stats().misses;
  CHECK(misses.queueing + misses.prefill + misses.step_time + misses.mapping + misses.reader >= 1);
  CHECK(running.engine->submit({.id = 3, .prompt = running.prompt(3), .tokens_max = 1}, &decision).ok());
  CHECK(decision.verdict != Verdict::refused);
  running.recorder.finished(3);
}
