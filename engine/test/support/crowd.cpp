#include "crowd.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "test.h"

namespace millrace::test {
namespace {

// Deadlines that any machine keeps: a crowd's answers are compared, not timed.
constexpr Deadlines no_hurry = {.ttft_us = 3'600'000'000, .itl_us = 60'000'000};

SamplingOptions any_sampling(Random& random) {
  SamplingOptions sampling{.seed = random.next()};
  if (random.chance(0.2)) return sampling;
  sampling.temperature = 0.3f + 1.2f * static_cast<float>(random.uniform());
  if (random.chance(0.4)) sampling.top_k = random.between(1, 50);
  if (random.chance(0.4)) sampling.top_p = 0.5f + 0.5f * static_cast<float>(random.uniform());
  if (random.chance(0.3)) sampling.min_p = 0.1f * static_cast<float>(random.uniform());
  if (random.chance(0.3)) sampling.repetition_penalty = 1.2f;
  if (random.chance(0.3)) sampling.presence_penalty = 0.5f;
  if (random.chance(0.3)) sampling.frequency_penalty = 0.5f;
  return sampling;
}

void shuffle(std::vector<Member>& crowd, Random& random) {
  for (size_t i = crowd.size(); i > 1; i--) std::swap(crowd[i - 1], crowd[static_cast<size_t>(random.between(0, static_cast<int>(i) - 1))]);
}

// One more than the largest number of a request.
size_t requests_of(const std::vector<Member>& crowd) {
  uint32_t largest = 0;
  for (const Member& member : crowd) largest = std::max(largest, member.request.id);
  return largest + 1;
}

// Cancels from a thread of its own, whatever the engine is doing meanwhile.
class Canceller {
 public:
  explicit Canceller(Engine& engine) : thread_([this, &engine] { work(engine); }) {}
  ~Canceller() {
    give(0);
    thread_.join();
  }
  // 0 ends the thread.
  void give(uint32_t request) {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    wake_.notify_one();
  }

 private:
  void work(Engine& engine) {
    for (;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return !requests_.empty(); });
      const std::vector<uint32_t> taken = std::exchange(requests_, {});
      lock.unlock();
      for (const uint32_t request : taken) {
        if (request == 0) return;
        engine.cancel(request);
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<uint32_t> requests_;
  std::thread thread_;
};

// On the engine's thread: cancels those whose moment has come.
class Moments {
 public:
  Moments(Engine& engine, const std::vector<Member>& crowd) : engine_(engine), canceller_(engine), by_request_(requests_of(crowd)) {
    for (const Member& member : crowd) {
      by_request_[member.request.id] = &member;
      if (member.cancel == Member::Cancel::elsewhere) elsewhere_.push_back(&member);
    }
    std::sort(elsewhere_.begin(), elsewhere_.end(), [](const Member* a, const Member* b) { return a->count > b->count; });
  }

  void hear(std::span<const Event> events) {
    for (const Event& event : events) {
      if (is_moment(event, *by_request_[event.request])) engine_.cancel(event.request);
      if (event.kind == EventKind::queued) continue;  // each step tells all places: those would be nearly all of the events
      for (heard_++; !elsewhere_.empty() && elsewhere_.back()->count <= heard_; elsewhere_.pop_back()) canceller_.give(elsewhere_.back()->request.id);
    }
    running_most_ = std::max(running_most_, engine_.stats().running);
  }
  int running_most() const { return running_most_; }

 private:
  static bool is_moment(const Event& event, const Member& member) {
    if (member.cancel == Member::Cancel::queued) return event.kind == EventKind::queued;
    if (member.cancel == Member::Cancel::started) return event.kind == EventKind::started;
    return member.cancel == Member::Cancel::token && event.kind == EventKind::tokens && event.seq >= member.count;
  }

  Engine& engine_;
  Canceller canceller_;
  std::vector<const Member*> by_request_;
  std::vector<const Member*> elsewhere_;  // the next last
  uint32_t heard_ = 0;
  int running_most_ = 0;
};

}  // namespace

std::vector<Member> make_crowd(const CrowdShape& shape, Random& random) {
  const std::vector<int32_t> shared = random.tokens(shape.shared_tokens, shape.vocabulary);
  std::vector<Member> crowd;
  for (int i = 0; i < shape.answered + shape.cancelled; i++) {
    Member member{.request = {.id = static_cast<uint32_t>(i + 1), .tokens_max = random.between(shape.tokens_min, shape.tokens_max), .sampling = any_sampling(random),
                              .service = static_cast<ServiceClass>(i % 3), .deadlines = no_hurry, .tenant = static_cast<uint32_t>(i % 5)}};
    std::vector<int32_t>& prompt = member.request.prompt;
    if (random.chance(0.15)) prompt.assign(shared.begin(), shared.begin() + (random.chance(0.1) ? shape.shared_tokens : shape.shared_tokens / 8));
    const std::vector<int32_t> own = random.tokens(random.between(1, shape.prompt_tokens_max), shape.vocabulary);
    prompt.insert(prompt.end(), own.begin(), own.end());
    if (random.chance(0.1)) member.request.stops = {std::string(1, static_cast<char>(random.between('a', 'z')))};
    if (i >= shape.answered) {
      member.cancel = static_cast<Member::Cancel>(1 + i % 5);
      const bool is_token = member.cancel == Member::Cancel::token;
      member.count = static_cast<uint32_t>(random.between(1, is_token ? shape.tokens_max - 1 : 20 * shape.answered));
      if (is_token) member.request.tokens_max = shape.tokens_max;
      if (member.cancel == Member::Cancel::started && random.chance(0.5)) prompt = random.tokens(shape.long_tokens, shape.vocabulary);
    }
    crowd.push_back(std::move(member));
  }
  shuffle(crowd, random);
  return crowd;
}

std::vector<Member> calm(std::vector<Member> crowd, Random& random) {
  for (Member& member : crowd) member.cancel = Member::Cancel::never;
  shuffle(crowd, random);
  return crowd;
}

CrowdRun run_crowd(Engine& engine, Recorder& recorder, const std::vector<Member>& crowd, int submitters) {
  CrowdRun run;
  {
    Moments moments(engine, crowd);
    recorder.also = [&](std::span<const Event> events) { moments.hear(events); };
    std::atomic<int> refused{0};
    std::vector<std::thread> threads;
    for (int first = 0; first < submitters; first++)
      threads.emplace_back([&, first] {
        for (size_t i = static_cast<size_t>(first); i < crowd.size(); i += static_cast<size_t>(submitters)) {
          if (!engine.submit(crowd[i].request).ok()) refused++;
          if (crowd[i].cancel == Member::Cancel::submitted) engine.cancel(crowd[i].request.id);
        }
      });
    for (std::thread& thread : threads) thread.join();
    REQUIRE(refused == 0, refused.load(), " of ", crowd.size(), " requests were refused");
    run.told.resize(requests_of(crowd));
    for (const Member& member : crowd) run.told[member.request.id] = recorder.finished(member.request.id);
    run.running_most = moments.running_most();
    recorder.also = {};
  }
  run.stats = engine.stats();
  return run;
}

}  // namespace millrace::test
