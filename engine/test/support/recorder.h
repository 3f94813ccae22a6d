// Listens to an engine: keeps what each request was told, and lets a test wait for it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "engine.h"

namespace millrace::test {

// What one request was told.
struct Told {
  std::vector<Event> events;

  std::string text() const;
  std::vector<int32_t> ids() const;
  std::vector<TokenLogprob> logprobs() const;
  // Its last event if that is `finished`, else null.
  const Event* end() const;
};

// Checks what every request is told, however it went: what it was continued with, places, then one start, then tokens with growing seq,
// then one end and nothing more. Places only get better, unless others may pass it: another class or tenant whose turn it is.
void check_order(const Told& told, bool is_passed = false);

class Recorder {
 public:
  Engine::OnStep listener() {
    return [this](std::span<const Event> events) { hear(events); };
  }
  // Called on the engine's own thread before the step's events are kept; set before the first request.
  std::function<void(std::span<const Event>)> also;

  // Waits until `done` holds of what the request was told; ends the test if that takes longer than any of ours may.
  Told wait(uint32_t request, const std::function<bool(const Told&)>& done);
  Told finished(uint32_t request);
  Told told(uint32_t request);

 private:
  void hear(std::span<const Event> events);

  std::mutex mutex_;
  std::condition_variable heard_;
  std::map<uint32_t, Told> told_;
};

// Whether tests that leave the choice run on a GPU, whose pages are 32 times as large at least.
bool on_gpu();

// Loads a model or ends the test with the engine's sentence. With MILLRACE_TEST_KERNELS=hopper a test that leaves the choice runs on a GPU, deterministically,
// so that what holds of the engine on a CPU is held against it there too; otherwise on a CPU, whatever the machine has.
std::unique_ptr<Engine> load(EngineOptions options, Recorder& recorder);

}  // namespace millrace::test
