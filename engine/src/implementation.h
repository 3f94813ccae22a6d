// What stands behind the engine's face: what commands leave for the thread, and what the thread keeps between two steps.
#pragma once

#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "assemble.h"
#include "base/clock.h"
#include "constrain/formats.h"
#include "live.h"

namespace millrace {

// The schedule's differences of times may be negative.
inline int64_t clock_us() { return static_cast<int64_t>(now_us()); }

struct Engine::Implementation {
  Implementation(std::unique_ptr<Assembly> assembly, OnStep on_step);
  ~Implementation() { close(); }

  Status submit(Request request, Decision* decision);
  void cancel(uint32_t request);
  void hold(uint32_t request, bool is_held);
  Result<std::vector<float>> evaluate(std::vector<int32_t> tokens, int chunk_tokens);
  void close();

  std::unique_ptr<Assembly> parts;

  mutable std::mutex mutex;  // guards what follows, up to the blank line
  std::condition_variable wake;
  std::vector<Request> submitted;
  std::vector<uint32_t> cancelled;
  struct Evaluation {
    std::vector<int32_t> tokens;
    int chunk_tokens;
    std::promise<Result<std::vector<float>>> done;
  };
  std::vector<Evaluation> evaluations;
  EngineStats stats;
  Schedule schedule;
  bool closing = false;
  bool is_changed = false;  // who is held changed since the last step

  // The engine's thread alone touches these.
  OnStep on_step;
  std::map<uint32_t, Live> live;
  std::vector<uint32_t> continued;  // requests that bring the beginning of their answers, not yet taken up
  std::vector<Event> events;
  bool is_idle = false;  // the last step had nothing to do
  std::vector<Request> taken_requests;
  std::vector<uint32_t> taken_cancels;
  std::vector<Evaluation> taken_evaluations;
  MaskThread masks;
  std::thread thread;
  std::once_flag joined;

  void work();
  bool take_commands();
  void begin_requests();
  void continue_answers();
  Taken take_slot(uint32_t request, int pages);
  void cancel_requests();
  void step();
  void settle_step(const Plan& plan, const std::vector<int32_t>& sampled, int64_t begun_us, int64_t mapping_us);
  void settle(const Row& row, int32_t token);
  void tell(Live& each, Released released);
  void finish(uint32_t request, Finish reason, std::string why = {});
  void end_all(const Status& status);
  void tell_places();
  void publish();
};

}  // namespace millrace
