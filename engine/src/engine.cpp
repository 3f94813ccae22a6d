// The engine's thread: commands in, a step, events out.
#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <utility>

#include "base/attempt.h"
#include "base/text.h"
#include "evaluate.h"
#include "implementation.h"
#include "stats.h"

namespace millrace {
namespace {

constexpr std::chrono::milliseconds idle_wait{20};
constexpr std::chrono::microseconds done_wait{500};
constexpr int64_t pages_seen_every_us = 1'000'000;
// Pages are mapped ahead for all rows at once, every few steps, so far that none comes to its end before the next time.
constexpr uint64_t prepare_steps = 4;
constexpr int prepare_tokens = prepare_steps + 2;
// So long before the step in front of it ends is one begun, and a part of that step's time, beside what beginning takes.
constexpr int64_t lead_us_min = 500, lead_part = 10;

}  // namespace

void Engine::Implementation::work() {
  end_all(attempt([this] {
    while (take_commands()) {
      continue_answers();
      cancel_requests();
      // What is evaluated has the backend for itself.
      while (!taken_evaluations.empty() && !begun.empty()) finish_step();
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
  while (!begun.empty()) {
    (void)attempt([this] { parts->backend->finish(); });
    masks.finish();
    begun.pop_front();
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

// When the next step is to be begun: where one is under way, just before the device would have nothing to do. Who comes until then is part of it.
int64_t Engine::Implementation::begin_at_us() const {
  if (begun.empty()) return 0;
  const Begun& last = begun.back();
  return std::max(last.begun_us, finished_us) + last.expected_us - (lead_us_min + last.expected_us / lead_part + begin_cost_us * 3 / 2);
}

// Waits until there is something to do. False: the engine closes.
bool Engine::Implementation::take_commands() {
  std::unique_lock lock(mutex);
  const auto has_commands = [this] { return closing || is_changed || !submitted.empty() || !cancelled.empty() || !evaluations.empty(); };
  while (!is_warm && live.empty() && begun.empty() && !has_commands()) {
    lock.unlock();
    // What fails is told by the step that needs it.
    if (!attempt([this] { is_warm = !parts->backend->warm_up(); }).ok()) is_warm = true;
    lock.lock();
  }
  const int64_t begin_at = begin_at_us();
  for (int64_t now = clock_us(); now < begin_at && !closing && evaluations.empty(); now = clock_us()) {
    // Where the model of step time was far off, the device is not left with nothing to do.
    lock.unlock();
    const bool is_done = parts->backend->is_done();
    lock.lock();
    if (is_done) break;
    wake.wait_for(lock, std::min<std::chrono::microseconds>(std::chrono::microseconds(begin_at - now), done_wait));
  }
  // Where all are held nothing comes of another step; but the schedule is asked again before long: it knows of times.
  if ((live.empty() && begun.empty()) || !is_idle)
    wake.wait(lock, [&] { return has_commands() || !live.empty() || !begun.empty(); });
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
      live.try_emplace(id, std::make_shared<Live>(std::move(request), parts->vocabulary.stops, now));
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
      end = found->second->take_up(parts->vocabulary, released);
      tell(*found->second, std::move(released));
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
  Live& each = *found->second;
  // What ended keeps what it was promised until its last step is finished, and who was parked shares no page any more.
  if (parts->slots->pages_promised() + pages > parts->schedule_limits.pages_max) return {};
  const Taken taken = parts->slots->take(each.tokens, pages);
  each.slot = taken.slot;
  each.is_begun = false;
  each.settled = taken.cached;
  if (each.started_us == 0) each.cached = taken.cached;
  return taken;
}

void Engine::Implementation::cancel_requests() {
  for (const uint32_t request : taken_cancels)
    if (live.contains(request)) finish(request, Finish::cancelled);
  taken_cancels.clear();
}

// Begins the next step, and finishes the first of those under way once they are more than may be ahead, or there is nothing to begin.
void Engine::Implementation::step() {
  const int ahead = parts->backend->steps_ahead();
  const bool has_begun = begin_step();
  is_idle = !has_begun && begun.empty();
  if (!begun.empty() && (!has_begun || static_cast<int>(begun.size()) > ahead)) finish_step();
}

bool Engine::Implementation::begin_step() {
  std::vector<uint32_t> admitted;
  std::vector<Row> rows;
  Begun next{.begun_us = clock_us()};
  const int64_t from = next.begun_us;
  {
    const std::lock_guard lock(mutex);
    schedule.shared(parts->slots->pages_shared());
    rows = schedule.plan(from, admitted);
    next.expected_us = schedule.step_ends_us() - from;
  }
  for (const uint32_t request : admitted) {
    Live& each = *live.at(request);
    // Who was parked has begun already.
    if (each.started_us == 0) events.push_back({.request = request, .kind = EventKind::started});
    if (each.started_us == 0) each.started_us = static_cast<uint64_t>(next.begun_us);
    if (const Status status = parts->slots->open(each.slot); !status.ok()) finish(request, Finish::failed, status.message());
  }
  std::vector<Constraint*> constraints;
  for (const Row& row : rows)
    if (add_row(next, row) && row.samples > 0 && next.rows.back()->constraint != nullptr) constraints.push_back(next.rows.back()->constraint.get());
  if (next.rows.empty()) return false;

  // Nothing that is known of its memory can be relied upon then: the engine ends.
  if (const Status broken = parts->slots->await(); !broken.ok()) throw std::runtime_error(broken.message());
  const int64_t mapped = clock_us();
  next.mapping_us = mapped - std::exchange(next.begun_us, mapped);
  begun.push_back(std::move(next));
  masks.finish();
  const Status status = attempt([&] {
    masks.begin(std::move(constraints));
    parts->backend->begin(begun.back().plan);
  });
  if (status.ok()) {
    begin_cost_us = std::max(clock_us() - from, begin_cost_us - begin_cost_us / 32);
    if (steps_begun++ % prepare_steps == 0) prepare_pages(begun.back().plan);
    return true;
  }
  masks.finish();
  const Begun failed = std::move(begun.back());
  begun.pop_back();
  fail_rows(failed, status);
  return true;
}

// What its rows will need next, while the step runs.
void Engine::Implementation::prepare_pages(const Plan& plan) {
  if (!parts->slots->maps_ahead()) return;
  std::vector<KvSlots::Ahead> ahead;
  for (const Row& row : plan.rows) ahead.push_back({row.slot, std::min(row.first + row.count + prepare_tokens, parts->options.context_tokens)});
  parts->slots->prepare(ahead);
}

// A row's pages and tokens; false if it fails for want of them.
bool Engine::Implementation::add_row(Begun& next, const Row& row) {
  const auto found = live.find(row.request);
  if (found == live.end()) return false;
  const Status status = parts->slots->grow(row.slot, row.first, row.count, found->second->settled);
  if (!status.ok()) {
    finish(row.request, Finish::failed, status.message());
    return false;
  }
  Live& each = *found->second;
  Plan& plan = next.plan;
  if (!each.is_begun && row.first > 0 && each.request.sampling.has_penalties()) plan.begun.push_back({row.slot, {each.tokens.begin(), each.tokens.begin() + row.first}});
  each.is_begun = true;
  const int known = static_cast<int>(each.tokens.size());
  for (int position = row.first; position < row.first + row.count; position++)
    plan.tokens.push_back(position < known ? each.tokens[static_cast<size_t>(position)] : sampled_before);
  for (int s = 0; s < row.samples; s++) plan.samplers.push_back({&each.sampler, std::max(0, row.first + row.count - known)});
  plan.rows.push_back(row);
  next.rows.push_back(found->second);
  return true;
}

bool Engine::Implementation::is_under_way(const Begun& step, size_t row) const {
  const auto found = live.find(step.plan.rows[row].request);
  return found != live.end() && found->second == step.rows[row];
}

void Engine::Implementation::fail_rows(const Begun& failed, const Status& status) {
  for (size_t i = 0; i < failed.rows.size(); i++)
    if (is_under_way(failed, i)) finish(failed.plan.rows[i].request, Finish::failed, text("a step could not be computed: ", status.message()));
}

void Engine::Implementation::finish_step() {
  std::vector<SampledToken> sampled;
  Status status = attempt([&] { sampled = parts->backend->finish(); });
  masks.finish();
  const Begun done = std::move(begun.front());
  begun.pop_front();
  for (const int slot : done.returned) parts->slots->give_back(slot);
  if (status.ok()) status = attempt([&] { settle_step(done, std::move(sampled)); });
  // Some rows may have been settled, to their ends even.
  if (!status.ok()) fail_rows(done, status);
}

void Engine::Implementation::settle_step(const Begun& done, std::vector<SampledToken> sampled) {
  const std::vector<Row>& rows = done.plan.rows;
  uint64_t prompt_tokens = 0;
  {
    const std::lock_guard lock(mutex);
    const int64_t now = clock_us();
    schedule.measured(rows, std::max(done.begun_us, std::exchange(finished_us, now)), now, done.mapping_us);
    for (size_t i = 0; i < rows.size(); i++) {
      if (!is_under_way(done, i)) continue;
      schedule.settle(rows[i], rows[i].samples, now);
      prompt_tokens += static_cast<uint64_t>(std::clamp(done.rows[i]->given() - rows[i].first, 0, rows[i].count));
    }
    stats.steps++;
    stats.tokens += sampled.size();
    stats.prompt_tokens += prompt_tokens;
  }
  size_t next = 0;
  for (size_t i = 0; i < rows.size(); i++) {
    SampledToken* token = rows[i].samples > 0 ? &sampled[next++] : nullptr;
    // Who ended meanwhile has computed one more, which nobody hears of.
    if (!is_under_way(done, i)) continue;
    done.rows[i]->settled = rows[i].first + rows[i].count;
    parts->slots->computed(rows[i].slot, std::span(done.rows[i]->tokens).subspan(static_cast<size_t>(rows[i].first), static_cast<size_t>(rows[i].count)));
    if (token != nullptr) settle(rows[i], std::move(*token));
  }
}

// One more token of a sequence: it ends the answer, or its text goes out.
void Engine::Implementation::settle(const Row& row, SampledToken sampled) {
  Live& each = *live.at(row.request);
  const int32_t token = sampled.token;
  each.tokens.push_back(token);
  each.logprobs.insert(each.logprobs.end(), sampled.logprobs.begin(), sampled.logprobs.end());
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
  Live& each = *live.at(request);
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
  const std::shared_ptr<Live> ended = live.extract(request).mapped();
  const std::lock_guard lock(mutex);
  if (const int slot = schedule.remove(request, is_whole, clock_us()); slot >= 0) give_back(slot, ended);
}

// A step that is not finished may still read and write the slot's pages.
void Engine::Implementation::give_back(int slot, const std::shared_ptr<Live>& ended) {
  for (auto step = begun.rbegin(); step != begun.rend(); ++step)
    if (std::find(step->rows.begin(), step->rows.end(), ended) != step->rows.end()) return step->returned.push_back(slot);
  parts->slots->give_back(slot);
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
    if (found == live.end() || found->second->started_us != 0) continue;
    Live& each = *found->second;
    if (each.place == place) continue;
    each.place = place;
    events.push_back({.request = request, .seq = static_cast<uint32_t>(place), .kind = EventKind::queued});
  }
}

void Engine::Implementation::publish() {
  const int64_t now = clock_us();
  const bool looks_at_pages = live.empty() || now >= pages_seen_us + pages_seen_every_us;
  const uint64_t held = looks_at_pages ? parts->slots->bytes_held() : 0;
  if (looks_at_pages) pages_seen_us = now;
  {
    const std::lock_guard lock(mutex);
    describe(schedule, *parts->slots, stats);
    if (looks_at_pages) stats.kv_bytes_held = held;
  }
  if (!events.empty()) on_step(events);
  events.clear();
}

}  // namespace millrace
