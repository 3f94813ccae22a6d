// What stands behind the engine's face: what commands leave for the thread, and what the thread keeps between two steps.
#pragma once

#include <condition_variable>
#include <deque>
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
  std::map<uint32_t, std::shared_ptr<Live>> live;
  // Steps that were begun, the first of them first, with the request of each row: it may have ended meanwhile, and another have its number.
  struct Begun {
    Plan plan;
    std::vector<std::shared_ptr<Live>> rows;
    std::vector<int> returned;  // slots of those that ended meanwhile
    int64_t begun_us, expected_us, mapping_us;
  };
  std::deque<Begun> begun;
  int64_t begin_cost_us = 0;  // the longest that beginning a step took of late
  int64_t finished_us = 0;  // when the last step was
  uint64_t steps_begun = 0;
  int64_t pages_seen_us = 0;  // when they were last looked at for statistics
  std::vector<uint32_t> continued;  // requests that bring the beginning of their answers, not yet taken up
  std::vector<Event> events;
  bool is_warm = false;  // the backend has nothing left to get ready
  bool is_idle = false;  // the last step had nothing to do
  std::vector<Request> taken_requests;
  std::vector<uint32_t> taken_cancels;
  std::vector<Evaluation> taken_evaluations;
  MaskThread masks;
  std::thread thread;
  std::once_flag joined;

  void work();
  bool take_commands();
  int64_t begin_at_us() const;
  void begin_requests();
  void continue_answers();
  Taken take_slot(uint32_t request, int pages);
  void cancel_requests();
  void step();
  bool begin_step();
  void prepare_pages(const Plan& plan);
  bool add_row(Begun& next, const Row& row);
  void fail_rows(const Begun& failed, const Status& status);
  void finish_step();
  void settle_step(const Begun& done, std::vector<SampledToken> sampled);
  bool is_under_way(const Begun& step, size_t row) const;
  void settle(const Row& row, SampledToken sampled);
  void tell(Live& each, Released released);
  void finish(uint32_t request, Finish reason, std::string why = {});
  void end_all(const Status& status);
  void give_back(int slot, const std::shared_ptr<Live>& ended);
  void tell_places();
  void publish();
};

}  // namespace millrace
