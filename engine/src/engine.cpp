// The engine's thread: commands in, a step, events out.
#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "base/attempt.h"
#include "base/text.h"
#include "evaluate.h"
#include "implementation.h"
#include "stats.h"

namespace millrace {
namespace {

constexpr std::chrono::milliseconds idle_wait{20};

}  // namespace

void Engine::Implementation::work() {
  end_all(attempt([this] {
    while (take_commands()) {
      continue_answers();
      cancel_requests();
      for (Evaluation& evaluation : taken_evaluations) evaluation.done.set_value(evaluate_now(*parts, evaluation.tokens, evaluation.chunk_tokens));
      taken_evaluations.clear();
      step();
      tell_places();
      publish();
    }
  }));
}

// Everybody is told the end, one at a time: where that is for want of memory, it takes next to none.
void Engine::Implementation::end_all(const Status& status) {
  {
    const std::lock_guard lock(mutex);
    closing = true;
    for (Request& request : submitted) taken_requests.push_back(std::move(request));
    for (Evaluation& evaluation : evaluations) taken_evaluations.push_back(std::move(evaluation));
    (void)attempt([this] { begin_requests(); });
  }
  const Finish reason = status.ok() ? Finish::closed : Finish::failed;
  const std::vector<Event> untold = std::exchange(events, {});
  for (const Event& event : untold) (void)attempt([&] { on_step({&event, 1}); });
  while (!live.empty()) {
    const uint32_t request = live.begin()->first;
    if (!attempt([&] { finish(request, reason, status.message()); }).ok()) live.erase(request);
    (void)attempt([&] { publish(); });
  }
  for (Evaluation& evaluation : taken_evaluations) evaluation.done.set_value(Status::error("the engine is closed"));
  publish();
}

// Waits until there is something to do. False: the engine closes.
bool Engine::Implementation::take_commands() {
  std::unique_lock lock(mutex);
  const auto has_commands = [this] { return closing || is_changed || !submitted.empty() || !cancelled.empty() || !evaluations.empty(); };
  // Where all are held nothing comes of another step; but the schedule is asked again before long: it knows of times.
  if (live.empty() || !is_idle)
    wake.wait(lock, [&] { return has_commands() || !live.empty(); });
  else
    wake.wait_for(lock, idle_wait, has_commands);
  is_changed = false;
  taken_requests.clear();
  taken_cancels.clear();
  taken_evaluations.clear();
  std::swap(taken_requests, submitted);
  std::swap(taken_cancels, cancelled);
  std::swap(taken_evaluations, evaluations);
  if (closing) return false;
  begin_requests();
  return true;
}

// With the mutex held.
void Engine::Implementation::begin_requests() {
  const uint64_t now = now_us();
  for (Request& request : taken_requests) {
    const uint32_t id = request.id;
    const Status status = attempt([&] {
      if (!request.continued.empty()) continued.push_back(id);
      live.try_emplace(id, std::move(request), parts->vocabulary.stops, now);
    });
    if (status.ok()) continue;
    events.push_back({.request = id, .kind = EventKind::finished, .finish = Finish::failed, .text = status.message()});
    schedule.remove(id, false, clock_us());
  }
  taken_requests.clear();
}

// What requests bring of their answers is told before all else, and may end them: then they need no slot.
void Engine::Implementation::continue_answers() {
  for (const uint32_t request : std::exchange(continued, {})) {
    const auto found = live.find(request);
    if (found == live.end()) continue;  // there was no memory to begin it
    std::optional<Finish> end;
    const Status status = attempt([&] {
      Released released;
      end = found->second.take_up(parts->vocabulary, released);
      tell(found->second, std::move(released));
    });
    if (!status.ok())
      finish(request, Finish::failed, status.message());
    else if (end)
      finish(request, *end);
  }
}

Taken Engine::Implementation::take_slot(uint32_t request, int pages) {
  // Who was submitted since commands were taken has its turn with the next step.
  const auto found = live.find(request);
  if (found == live.end()) return {};
  Live& each = found->second;
  const Taken taken = parts->slots->take(each.tokens, pages);
  each.slot = taken.slot;
  if (each.started_us == 0) each.cached = taken.cached;
  return taken;
}

void Engine::Implementation::cancel_requests() {
  for (const uint32_t request : taken_cancels)
    if (live.contains(request)) finish(request, Finish::cancelled);
  taken_cancels.clear();
}

void Engine::Implementation::step() {
  std::vector<uint32_t> admitted;
  Plan plan;
  {
    const std::lock_guard lock(mutex);
    plan.rows = schedule.plan(clock_us(), admitted);
  }
  const uint64_t now = now_us();
  for (const uint32_t request : admitted) {
    Live& each = live.at(request);
    // Who was parked has begun already.
    if (each.started_us == 0) events.push_back({.request = request, .kind = EventKind::started});
    if (each.started_us == 0) each.started_us = now;
    if (const Status status = parts->slots->open(each.slot); !status.ok()) finish(request, Finish::failed, status.message());
  }
  std::vector<Constraint*> constraints;
  for (size_t i = 0; i < plan.rows.size();) {
    const Row& row = plan.rows[i];
    const bool is_live = live.contains(row.request);
    const Status status = is_live ? parts->slots->grow(row.slot, row.first, row.count) : Status();
    if (!is_live || !status.ok()) {
      if (is_live) finish(row.request, Finish::failed, status.message());
      plan.rows.erase(plan.rows.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    Live& each = live.at(row.request);
    plan.tokens.insert(plan.tokens.end(), each.tokens.begin() + row.first, each.tokens.begin() + row.first + row.count);
    for (int s = 0; s < row.samples; s++) plan.samplers.push_back(&each.sampler);
    if (row.samples > 0 && each.constraint != nullptr) constraints.push_back(each.constraint.get());
    i++;
  }
  is_idle = plan.rows.empty();
  if (is_idle) return;

  const int64_t mapped = clock_us();
  std::vector<int32_t> sampled;
  Status status = attempt([&] {
    masks.begin(std::move(constraints));
    sampled = parts->backend->run(plan);
  });
  masks.finish();
  if (status.ok()) status = attempt([&] { settle_step(plan, sampled, mapped, mapped - static_cast<int64_t>(now)); });
  // Some rows may have been settled, to their ends even.
  for (const Row& row : plan.rows)
    if (!status.ok() && live.contains(row.request)) finish(row.request, Finish::failed, text("a step could not be computed: ", status.message()));
}

void Engine::Implementation::settle_step(const Plan& plan, const std::vector<int32_t>& sampled, int64_t begun_us, int64_t mapping_us) {
  uint64_t prompt_tokens = 0;
  {
    const std::lock_guard lock(mutex);
    const int64_t now = clock_us();
    schedule.measured(plan.rows, begun_us, now, mapping_us);
    for (const Row& row : plan.rows) {
      schedule.settle(row, row.samples, now);
      prompt_tokens += static_cast<uint64_t>(std::clamp(live.at(row.request).given() - row.first, 0, row.count));
    }
    stats.steps++;
    stats.tokens += sampled.size();
    stats.prompt_tokens += prompt_tokens;
  }
  size_t next = 0, first = 0;
  for (const Row& row : plan.rows) {
    parts->slots->computed(row.slot, std::span(plan.tokens).subspan(first, static_cast<size_t>(row.count)));
    first += static_cast<size_t>(row.count);
    if (row.samples > 0) settle(row, sampled[next++]);
  }
}

// One more token of a sequence: it ends the answer, or its text goes out.
void Engine::Implementation::settle(const Row& row, int32_t token) {
  Live& each = live.at(row.request);
  each.tokens.push_back(token);
  each.logprobs.insert(each.logprobs.end(), each.sampler.logprobs().begin(), each.sampler.logprobs().end());
  each.last_us = now_us();
  if (each.first_us == 0) each.first_us = each.last_us;

  if (each.constraint != nullptr)
    if (Status status = each.constraint->accept(token); !status.ok()) return finish(row.request, Finish::failed, status.message());
  Released released;
  const std::optional<Finish> end = each.take(token, parts->vocabulary, released);
  tell(each, std::move(released));
  if (end) finish(row.request, *end);
}

void Engine::Implementation::tell(Live& each, Released released) {
  while (!released.ids.empty()) events.push_back(each.release(released));
}

void Engine::Implementation::finish(uint32_t request, Finish reason, std::string why) {
  Live& each = live.at(request);
  // Who ends an answer himself gets nothing after that; otherwise what was held back was text after all.
  if (reason == Finish::stop || reason == Finish::length) tell(each, each.releaser.flush());
  const auto span = [](uint64_t from, uint64_t to) { return static_cast<uint32_t>(from != 0 && to > from ? to - from : 0); };
  events.push_back({.request = request,
                    .seq = each.seq,
                    .kind = EventKind::finished,
                    .finish = reason,
                    .text = std::move(why),
                    .queue_us = span(each.submitted_us, each.started_us != 0 ? each.started_us : now_us()),
                    .prefill_us = span(each.started_us, each.first_us),
                    .decode_us = span(each.first_us, each.last_us),
                    .prompt_tokens = static_cast<uint32_t>(each.request.prompt.size()),
                    .cached_tokens = static_cast<uint32_t>(std::min<size_t>(static_cast<size_t>(each.cached), each.request.prompt.size()))});
  // What was left of an answer that began elsewhere tells nothing of how long answers are.
  const bool is_whole = (reason == Finish::stop || reason == Finish::length) && each.request.continued.empty();
  live.erase(request);
  const std::lock_guard lock(mutex);
  const int slot = schedule.remove(request, is_whole, clock_us());
  if (slot >= 0) parts->slots->give_back(slot);
}

void Engine::Implementation::tell_places() {
  std::vector<uint32_t> waiting;
  {
    const std::lock_guard lock(mutex);
    waiting = schedule.waiting();
  }
  int place = 0;
  for (const uint32_t request : waiting) {
    place++;
    const auto found = live.find(request);
    // Submitted a moment ago: its turn to be told comes with the next step. Or parked and back: it has begun already.
    if (found == live.end() || found->second.started_us != 0) continue;
    Live& each = found->second;
    if (each.place == place) continue;
    each.place = place;
    events.push_back({.request = request, .seq = static_cast<uint32_t>(place), .kind = EventKind::queued});
  }
}

void Engine::Implementation::publish() {
  {
    const std::lock_guard lock(mutex);
    describe(schedule, *parts->slots, stats);
  }
  if (!events.empty()) on_step(events);
  events.clear();
}

}  // namespace millrace
