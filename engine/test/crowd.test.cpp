// Five hundred requests at once and two hundred cancellations: every answer is what it is alone, nobody hears anything after its end,
// and what was taken is free again. The sanitizers run this too, with fewer.
#include <algorithm>
#include <atomic>

#include "support/crowd.h"
#include "support/golden_model.h"
#include "support/test.h"

using namespace millrace;
using test::check_order;
using test::CrowdRun;
using test::Member;
using test::Recorder;
using test::Told;

namespace {

constexpr int context_tokens = 1024;
constexpr uint64_t ample = 128 << 20, tight = 12 << 20;  // tight: slots are stripped of their pages for others
constexpr int slots = 540;  // of which some are kept free for the tightest class
constexpr int solo_answers = 50;

struct Running {
  Recorder recorder;
  std::unique_ptr<Engine> engine;

  Running(const std::string& model, int slots, int threads, uint64_t kv_memory_bytes = ample)
      : engine(test::load({.path = test::GoldenModel{.name = model}.path(), .threads = threads, .context_tokens = context_tokens,
                           .kv_memory_bytes = kv_memory_bytes * (test::on_gpu() ? 8 : 1), .slots = slots},
                          recorder)) {}
};

// What a request was told is what it is told alone; of one that was cancelled, the beginning of that.
void check_same(uint32_t request, const Told& told, const Told& alone) {
  const std::vector<int32_t> ids = told.ids(), expected = alone.ids();
  const Event &end = *told.end(), &expected_end = *alone.end();
  if (end.finish == Finish::cancelled) {
    CHECK(ids.size() <= expected.size() && std::equal(ids.begin(), ids.end(), expected.begin()), "request ", request, " had other tokens before it was cancelled");
    CHECK(alone.text().starts_with(told.text()) && end.seq <= expected_end.seq, "request ", request, " had more before it was cancelled than alone");
    return;
  }
  CHECK(ids == expected && told.text() == alone.text(), "request ", request, ": ", test::show(ids), ", alone ", test::show(expected));
  CHECK(end.finish == expected_end.finish && end.seq == expected_end.seq, "request ", request, " ended otherwise than alone");
}

bool has(const Told& told, EventKind kind) {
  return std::ranges::any_of(told.events, [=](const Event& event) { return event.kind == kind; });
}

// Wherever a request may stand, some were cancelled there.
void check_cancelled(const CrowdRun& run) {
  int queued = 0, prefilling = 0, decoding = 0;
  for (const Told& told : run.told) {
    if (told.events.empty() || told.end()->finish != Finish::cancelled) continue;
    (has(told, EventKind::tokens) ? decoding : has(told, EventKind::started) ? prefilling : queued)++;
  }
  CHECK(queued >= 10 && prefilling >= 10 && decoding >= 10, queued, " were cancelled in the queue, ", prefilling, " in their prompts, ", decoding, " in their answers");
}

void check_idle(const EngineStats& stats) {
  CHECK_EQUAL(stats.running, 0);
  CHECK_EQUAL(stats.waiting, 0);
  CHECK_EQUAL(stats.kv_bytes_promised, uint64_t{0});
  CHECK(stats.kv_bytes_mapped <= stats.kv_bytes_max, stats.kv_bytes_mapped, " of ", stats.kv_bytes_max);
}

void play(const std::string& model, uint64_t kv_memory_bytes, test::CrowdShape shape) {
  test::Random random;
  Running running(model, slots, 2, kv_memory_bytes), few(model, 4, 1), solo(model, 1, 1);
  shape.vocabulary = running.engine->info().vocabulary_size;
  if (test::is_sanitized) shape.answered = 200;
  const std::vector<Member> crowd = test::make_crowd(shape, random);
  const CrowdRun run = test::run_crowd(*running.engine, running.recorder, crowd, 4);
  check_idle(run.stats);
  check_cancelled(run);
  if (kv_memory_bytes == ample) CHECK(run.running_most >= 100, run.running_most, " at most ran at once");

  // Those who got nothing have nothing to compare.
  std::vector<Member> answered = test::calm(crowd, random);
  std::erase_if(answered, [&](const Member& member) { return !has(run.told[member.request.id], EventKind::tokens); });
  const CrowdRun reference = test::run_crowd(*few.engine, few.recorder, answered, 2);
  check_idle(reference.stats);
  for (const Member& member : answered) check_same(member.request.id, run.told[member.request.id], reference.told[member.request.id]);

  for (int i = 0; i < solo_answers; i++) {
    const Request& request = answered[static_cast<size_t>(i)].request;
    REQUIRE(solo.engine->submit(request).ok());
    check_same(request.id, reference.told[request.id], solo.recorder.finished(request.id));
  }

  running.engine->close();
  check_idle(running.engine->stats());
  for (const Member& member : crowd) check_order(running.recorder.told(member.request.id), true);
}

}  // namespace

TEST("a crowd on a Llama: each answer is what it is alone, and nothing is left") { play("llama3", ample, {.tokens_min = 50, .tokens_max = 110}); }
TEST("a crowd on a Mistral, with a window and little memory: each answer is what it is alone, and nothing is left") { play("mistral", tight, {}); }

// The pool holds one of these at a time, so that the second begins when the first one's pages are free.
TEST("the pages of whoever is cancelled are another's within two steps") {
  Recorder recorder;
  const auto engine = test::load({.path = test::GoldenModel{.name = "llama3"}.path(), .threads = 2, .context_tokens = context_tokens,
                                  .kv_memory_bytes = test::on_gpu() ? uint64_t{2 << 20} : uint64_t{3 * (128 << 10)}, .slots = 2},
                                 recorder);
  std::atomic<uint64_t> cancelled_at{0}, started_at{0};
  recorder.also = [&](std::span<const Event> events) {
    for (const Event& event : events) {
      if (event.request == 1 && event.kind == EventKind::tokens && event.seq >= 40 && cancelled_at == 0) {
        cancelled_at = engine->stats().steps;
        engine->cancel(1);
      }
      if (event.request == 2 && event.kind == EventKind::started) started_at = engine->stats().steps;
    }
  };
  test::Random random;
  REQUIRE(engine->submit({.id = 1, .prompt = random.tokens(10, 260), .tokens_max = 900, .ignores_end = true}).ok());
  REQUIRE(engine->submit({.id = 2, .prompt = random.tokens(10, 260), .tokens_max = 900, .ignores_end = true}).ok());
  recorder.wait(2, [](const Told& told) { return has(told, EventKind::tokens); });
  CHECK(recorder.told(1).end() != nullptr && recorder.told(1).end()->finish == Finish::cancelled);
  CHECK(started_at > cancelled_at && started_at - cancelled_at <= 2, "cancelled after step ", cancelled_at.load(), ", the pages taken over in step ", started_at.load());
  engine->cancel(2);
  recorder.finished(2);
  check_idle(engine->stats());
}
