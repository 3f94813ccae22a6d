// What happens where there is no memory: a request, a step or the engine fails with a sentence, and the process lives.
#include <atomic>
#include <cstdlib>
#include <new>

#include "engine.h"
#include "support/random.h"
#include "support/recorder.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::Told;

namespace {

std::atomic<size_t> refused_bytes{0};       // allocations of just this size fail; 0: none
thread_local bool is_test_thread = false;   // and never the test's own

void* allocate(size_t bytes) {
  void* memory = bytes == refused_bytes && bytes != 0 && !is_test_thread ? nullptr : std::malloc(bytes != 0 ? bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// While it lives, the engine's threads cannot have so many bytes.
struct Scarcity {
  explicit Scarcity(size_t bytes) {
    is_test_thread = true;
    refused_bytes = bytes;
  }
  ~Scarcity() { refused_bytes = 0; }
};

constexpr int vocabulary = 5000;
constexpr size_t logits_bytes = vocabulary * sizeof(float);  // what a row keeps that asks for log-probabilities; nothing else is of this size

struct Running {
  test::Random random;
  test::TemporaryFile path{tiny_model({.layers = 1, .vocabulary = vocabulary, .context = 1 << 16}, random)};
  test::Recorder recorder;
  std::unique_ptr<Engine> engine = test::load({.path = path.path(), .threads = 2, .context_tokens = 1 << 16, .slots = 4}, recorder);

  void submit(const Request& request) {
    const Status status = engine->submit(request);
    REQUIRE(status.ok(), status.message());
  }
};

bool has_tokens(const Told& told) {
  for (const Event& event : told.events)
    if (event.kind == EventKind::tokens) return true;
  return false;
}

const std::string no_memory = "there is not enough memory";

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

TEST("a step without memory ends its requests with a sentence; the next ones are answered as ever") {
  Running running;
  const Request request{.id = 1, .prompt = running.random.tokens(20, 256), .tokens_max = 8, .sampling = {.logprobs = 2}};
  running.submit(request);
  const std::vector<int32_t> right = running.recorder.finished(1).ids();
  running.submit({.id = 2, .prompt = {1, 2}, .tokens_max = 60000});
  running.recorder.wait(2, has_tokens);
  {
    const Scarcity scarcity(logits_bytes);
    Request failing = request;
    failing.id = 3;
    running.submit(failing);
    const Told told = running.recorder.finished(3);
    CHECK(told.end()->finish == Finish::failed);
    CHECK_EQUAL(told.end()->text, "a step could not be computed: " + no_memory);
  }
  Request again = request;
  again.id = 4;
  running.submit(again);
  CHECK_EQUAL(running.recorder.finished(4).ids(), right);
  running.engine->cancel(2);
  running.recorder.finished(2);
  running.engine->close();
  CHECK_EQUAL(running.engine->stats().running + running.engine->stats().waiting, 0);
}

TEST("a prompt that there is no memory to keep fails alone") {
  Running running;
  running.submit({.id = 1, .prompt = {1, 2}, .tokens_max = 60000});
  running.recorder.wait(1, has_tokens);
  {
    const Scarcity scarcity(7001 * sizeof(int32_t));
    running.submit({.id = 2, .prompt = running.random.tokens(7001, 256), .tokens_max = 5});
    const Told told = running.recorder.finished(2);
    CHECK(told.end()->finish == Finish::failed && told.events.size() == 1, told.events.size());
    CHECK_EQUAL(told.end()->text, no_memory);
  }
  running.engine->cancel(1);
  CHECK(running.recorder.finished(1).end()->finish == Finish::cancelled);
  running.submit({.id = 3, .prompt = running.random.tokens(7001, 256), .tokens_max = 1});
  CHECK(running.recorder.finished(3).end()->finish == Finish::length);
}

TEST("logits that there is no memory for are an error, as often as they are asked for") {
  Running running;
  const std::vector<int32_t> tokens = {1, 2, 3};
  {
    const Scarcity scarcity(3 * logits_bytes);
    for (int round = 0; round < 10; round++) CHECK_EQUAL(running.engine->evaluate(tokens, 2).status().message(), no_memory);
  }
  CHECK(running.engine->evaluate(tokens, 2).ok());
}

TEST("an engine whose listener cannot hear ends, and tells everybody so") {
  Running running;
  std::atomic<int> deaf{1};
  running.recorder.also = [&](std::span<const Event> events) {
    for (const Event& event : events)
      if (event.kind == EventKind::tokens && deaf.fetch_add(1) == 0) throw std::bad_alloc();
  };
  for (const uint32_t id : {1u, 2u, 3u, 4u, 5u, 6u}) running.submit({.id = id, .prompt = {1, 2}, .tokens_max = 10000});
  deaf = 0;  // from here on, once
  for (const uint32_t id : {1u, 2u, 3u, 4u, 5u, 6u}) {
    const Told told = running.recorder.finished(id);
    CHECK(told.end()->finish == Finish::failed, static_cast<int>(told.end()->finish));
    CHECK_EQUAL(told.end()->text, no_memory);
  }
  CHECK_EQUAL(running.engine->submit({.id = 7, .prompt = {1}, .tokens_max = 1}).message(), std::string("the engine is closed"));
  CHECK_EQUAL(running.engine->evaluate({1}, 1).status().message(), std::string("the engine is closed"));
  running.engine->close();
}
