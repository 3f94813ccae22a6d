// The engine at its limits: what is refused with which numbers, and what waits until there is room.
#include <algorithm>

#include "engine.h"
#include "support/random.h"
#include "support/recorder.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::Recorder;
using test::TemporaryFile;
using test::Told;

namespace {

constexpr uint64_t page_bytes = 64 << 10;  // of a tiny model: 256 tokens

struct Tiny {
  test::Random random;
  TemporaryFile path{tiny_model({}, random)};
  Recorder recorder;
};

bool says(const Status& status, const std::string& sentence) {
  return status.message().find(sentence) != std::string::npos;
}

}  // namespace

TEST("requests that could never run are refused with the numbers") {
  Tiny tiny;
  const auto engine = test::load({.path = tiny.path.path(), .threads = 1, .context_tokens = 100, .slots = 1}, tiny.recorder);
  const auto refused = [&](const Request& request, const std::string& sentence) {
    const Status status = engine->submit(request);
    CHECK(says(status, sentence), "wanted \"", sentence, "\", got \"", status.message(), "\"");
  };
  refused({.prompt = std::vector<int32_t>(80, 1), .tokens_max = 21}, "the prompt's 80 tokens plus at most 21 more are 101, over the context of 100");
  refused({.prompt = {1}, .tokens_max = 0x7fffffff}, "are 2147483648, over the context of 100");
  refused({.prompt = {}, .tokens_max = 1}, "the prompt has no tokens");
  refused({.prompt = {1}, .tokens_max = 0}, "at most 0 tokens are asked for");
  refused({.prompt = {1}, .tokens_max = -5}, "at most -5 tokens are asked for");
  refused({.prompt = {1, 300}, .tokens_max = 1}, "token 300 is not in the vocabulary of 300");
  refused({.prompt = {-1}, .tokens_max = 1}, "token -1 is not in the vocabulary of 300");
  refused({.prompt = {1}, .tokens_max = 1, .stops = {"x", ""}}, "a stop string is empty");
  CHECK(says(engine->evaluate({}, 1).status(), "no tokens"));
  CHECK(says(engine->evaluate({300}, 1).status(), "token 300"));
  CHECK(says(engine->evaluate(std::vector<int32_t>(101, 1), 10).status(), "101 tokens are over the context of 100"));
  CHECK(says(engine->evaluate({1}, 0).status(), "chunks of 0 tokens"));
}

TEST("an answer may fill the context to its last token") {
  Tiny tiny;
  const auto engine = test::load({.path = tiny.path.path(), .threads = 1, .context_tokens = 100, .slots = 1}, tiny.recorder);
  REQUIRE(engine->submit({.id = 1, .prompt = std::vector<int32_t>(60, 7), .tokens_max = 40}).ok());
  const Told told = tiny.recorder.finished(1);
  CHECK(told.end()->finish == Finish::length);
  CHECK_EQUAL(told.end()->seq, 40u);
  REQUIRE(engine->submit({.id = 2, .prompt = std::vector<int32_t>(99, 7), .tokens_max = 1}).ok());
  CHECK_EQUAL(tiny.recorder.finished(2).end()->seq, 1u);
}

TEST("options that fit no machine or model are refused") {
  Tiny tiny;
  const auto refused = [&](EngineOptions options, const std::string& sentence) {
    options.path = tiny.path.path();
    const auto engine = Engine::load(options, tiny.recorder.listener());
    CHECK(!engine.ok() && says(engine.status(), sentence), "wanted \"", sentence, "\", got \"", engine.status().message(), "\"");
  };
  refused({.context_tokens = 1025}, "a context of 1025 tokens is more than the 1024 this model was trained for");
  refused({.kv_memory_bytes = page_bytes - 1}, "KV memory of 65535 bytes holds no page of 65536 bytes; raise --kv-memory");
}

TEST("a request larger than all KV memory is refused, one that just fits runs") {
  Tiny tiny;
  const auto engine = test::load({.path = tiny.path.path(), .threads = 1, .kv_memory_bytes = 2 * page_bytes, .slots = 2}, tiny.recorder);
  const Status status = engine->submit({.id = 1, .prompt = std::vector<int32_t>(500, 1), .tokens_max = 13});
  CHECK(says(status, "a sequence of 513 tokens needs 3 pages of KV memory, and there are 2; raise --kv-memory"), status.message());
  REQUIRE(engine->submit({.id = 2, .prompt = std::vector<int32_t>(500, 1), .tokens_max = 12}).ok());
  CHECK(tiny.recorder.finished(2).end()->finish == Finish::length);
  CHECK_EQUAL(engine->stats().kv_bytes_max, 2 * page_bytes);
}

// Random sizes over a pool that holds two or three of them, so that slots change hands with pages of all histories.
TEST("under pressure requests wait for pages, and every one of them completes") {
  Tiny tiny;
  const auto engine = test::load({.path = tiny.path.path(), .threads = 2, .kv_memory_bytes = 5 * page_bytes, .slots = 4}, tiny.recorder);
  constexpr uint32_t count = 60;
  std::vector<Request> requests;
  for (uint32_t id = 0; id < count; id++) {
    const int prompt = tiny.random.chance(0.5) ? tiny.random.between(1, 30) : tiny.random.between(200, 900);
    requests.push_back({.id = id, .prompt = tiny.random.tokens(prompt, 300), .tokens_max = tiny.random.between(1, 60)});
    REQUIRE(engine->submit(requests.back()).ok());
  }
  for (const Request& request : requests) {
    const Told told = tiny.recorder.finished(request.id);
    CHECK(told.end()->finish == Finish::length, "request ", request.id, " ended as ", static_cast<int>(told.end()->finish));
    CHECK_EQUAL(told.ids().size(), static_cast<size_t>(request.tokens_max));
  }
  CHECK(engine->stats().kv_bytes_mapped <= 5 * page_bytes);
}

TEST("an evaluation beside running requests takes nobody's pages, and says so when there are none") {
  Tiny tiny;
  const auto engine = test::load({.path = tiny.path.path(), .threads = 1, .kv_memory_bytes = 4 * page_bytes, .slots = 2}, tiny.recorder);
  // It stops where three of four pages are in use, however long the evaluations take to come.
  bool is_paused = false;
  tiny.recorder.also = [&](std::span<const Event> events) {
    if (!is_paused && events[0].kind == EventKind::tokens && events[0].seq >= 250) engine->pause(1), is_paused = true;
  };
  REQUIRE(engine->submit({.id = 1, .prompt = tiny.random.tokens(300, 300), .tokens_max = 700}).ok());
  tiny.recorder.wait(1, [](const Told& told) { return told.ids().size() >= 250; });
  const auto small = engine->evaluate(tiny.random.tokens(100, 300), 50);
  CHECK(small.ok(), small.status().message());
  const auto large = engine->evaluate(tiny.random.tokens(600, 300), 50);
  CHECK(says(large.status(), "600 tokens need 3 pages of KV memory, more than are free of 4"), large.status().message());
  engine->resume(1);
  CHECK(tiny.recorder.finished(1).end()->finish == Finish::length);
  CHECK(engine->evaluate(tiny.random.tokens(1000, 300), 50).ok());
}

TEST("more requests than may wait are refused with their number") {
  Tiny tiny;
  const auto engine = test::load({.path = tiny.path.path(), .threads = 1, .slots = 1}, tiny.recorder);
  Status refused;
  uint32_t taken = 0;
  // The first runs for long; 256 more may wait.
  for (; taken < 1000 && refused.ok(); taken++) refused = engine->submit({.id = taken, .prompt = {1}, .tokens_max = taken == 0 ? 1000 : 1});
  CHECK(says(refused, "256 requests wait already"), refused.message());
  for (uint32_t id = 0; id < taken; id++) engine->cancel(id);
  for (uint32_t id = 0; id + 1 < taken; id++) CHECK(tiny.recorder.finished(id).end() != nullptr);
}
