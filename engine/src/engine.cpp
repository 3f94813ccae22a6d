// The engine's thread: commands in, a step, events out.
#include "engine.h"

#include <algorithm>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "assemble.h"
#include "base/clock.h"
#include "base/text.h"
#include "live.h"

namespace millrace {

struct Engine::Implementation {
  Implementation(std::unique_ptr<Assembly> assembly, OnStep on_step);
  ~Implementation() { close(); }

  Status submit(Request request);
  void cancel(uint32_t request);
  Result<std::vector<float>> evaluate(std::vector<int32_t> tokens, int chunk_tokens);
  void close();
  Status check_tokens(const std::vector<int32_t>& tokens) const;

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
  bool closing = false;

  // The engine's thread alone touches these.
  OnStep on_step;
  Schedule schedule;
  std::map<uint32_t, Live> live;
  std::vector<Event> events;
  std::vector<Request> taken_requests;
  std::vector<uint32_t> taken_cancels;
  std::vector<Evaluation> taken_evaluations;
  std::thread thread;
  std::once_flag joined;

  void work();
  bool take_commands();
  void begin_requests();
  void step();
  void settle(const Row& row, int32_t token);
  void tell(Live& each, Released released);
  void finish(uint32_t request, Finish reason);
  void tell_places();
  void publish();
  Result<std::vector<float>> evaluate_now(const Evaluation& evaluation);
};

Engine::Implementation::Implementation(std::unique_ptr<Assembly> assembly, OnStep listener)
    : parts(std::move(assembly)), on_step(std::move(listener)),
      schedule(parts->schedule_limits, [this](int pages) { return schedule.running_count() < parts->options.slots ? parts->slots->take(pages) : -1; }) {
  stats.slots = parts->options.slots;
  stats.kv_bytes_max = static_cast<uint64_t>(parts->slots->pages_max()) * static_cast<uint64_t>(parts->slots->layout().page_bytes);
  thread = std::thread([this] { work(); });
}

Status Engine::Implementation::check_tokens(const std::vector<int32_t>& tokens) const {
  if (tokens.empty()) return Status::error("the prompt has no tokens; give at least one");
  for (const int32_t token : tokens)
    if (token < 0 || token >= parts->info.vocabulary_size)
      return Status::error(text("token ", token, " is not in the vocabulary of ", parts->info.vocabulary_size));
  return Status();
}

Status Engine::Implementation::submit(Request request) {
  if (Status status = check_tokens(request.prompt); !status.ok()) return status;
  if (request.tokens_max < 1) return Status::error(text("at most ", request.tokens_max, " tokens are asked for; ask for one or more"));
  for (const std::string& stop : request.stops)
    if (stop.empty()) return Status::error("a stop string is empty; it would end every answer before it begins");
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + request.tokens_max;
  if (total > parts->info.context_tokens)
    return Status::error(text("the prompt's ", request.prompt.size(), " tokens plus at most ", request.tokens_max, " more are ", total,
                              ", over the context of ", parts->info.context_tokens));
  if (!schedule.fits_ever(static_cast<int>(request.prompt.size()), request.tokens_max))
    return Status::error(text("a sequence of ", total, " tokens needs more KV memory than there is (", parts->slots->pages_max(),
                              " pages of ", parts->slots->layout().page_tokens, " tokens); raise --kv-memory or ask for fewer tokens"));
  {
    const std::lock_guard lock(mutex);
    if (closing) return Status::error("the engine is closed");
    if (stats.waiting + static_cast<int>(submitted.size()) >= parts->schedule_limits.waiting_max)
      return Status::error(text(parts->schedule_limits.waiting_max, " requests wait already"));
    submitted.push_back(std::move(request));
  }
  wake.notify_one();
  return Status();
}

void Engine::Implementation::cancel(uint32_t request) {
  {
    const std::lock_guard lock(mutex);
    cancelled.push_back(request);
  }
  wake.notify_one();
}

Result<std::vector<float>> Engine::Implementation::evaluate(std::vector<int32_t> tokens, int chunk_tokens) {
  if (Status status = check_tokens(tokens); !status.ok()) return status;
  if (static_cast<int64_t>(tokens.size()) > parts->info.context_tokens)
    return Status::error(text(tokens.size(), " tokens are over the context of ", parts->info.context_tokens));
  if (chunk_tokens < 1) return Status::error(text("chunks of ", chunk_tokens, " tokens are asked for; ask for one or more"));
  std::future<Result<std::vector<float>>> result;
  {
    const std::lock_guard lock(mutex);
    if (closing) return Status::error("the engine is closed");
    evaluations.push_back({std::move(tokens), chunk_tokens, {}});
    result = evaluations.back().done.get_future();
  }
  wake.notify_one();
  return result.get();
}

void Engine::Implementation::close() {
  {
    const std::lock_guard lock(mutex);
    closing = true;
  }
  wake.notify_one();
  std::call_once(joined, [this] { thread.join(); });
}

void Engine::Implementation::work() {
  while (take_commands()) {
    begin_requests();
    for (Evaluation& evaluation : taken_evaluations) evaluation.done.set_value(evaluate_now(evaluation));
    step();
    tell_places();
    publish();
  }
  while (!live.empty()) finish(live.begin()->first, Finish::closed);
  for (const Request& request : taken_requests) events.push_back({.request = request.id, .kind = EventKind::finished, .finish = Finish::closed});
  for (Evaluation& evaluation : taken_evaluations) evaluation.done.set_value(Status::error("the engine is closed"));
  publish();
}

// Waits until there is something to do. False: the engine closes.
bool Engine::Implementation::take_commands() {
  std::unique_lock lock(mutex);
  wake.wait(lock, [this] { return closing || !submitted.empty() || !cancelled.empty() || !evaluations.empty() || !live.empty(); });
  taken_requests.clear();
  taken_cancels.clear();
  taken_evaluations.clear();
  std::swap(taken_requests, submitted);
  std::swap(taken_cancels, cancelled);
  std::swap(taken_evaluations, evaluations);
  stats.waiting += static_cast<int>(taken_requests.size());  // until publish() counts anew
  return !closing;
}

void Engine::Implementation::begin_requests() {
  const uint64_t now = now_us();
  for (Request& request : taken_requests) {
    const uint32_t id = request.id;
    const bool queued = schedule.add(id, static_cast<int>(request.prompt.size()), request.tokens_max);
    live.try_emplace(id, std::move(request), now);
    if (!queued) finish(id, Finish::failed);
  }
  for (const uint32_t request : taken_cancels)
    if (live.contains(request)) finish(request, Finish::cancelled);
}

void Engine::Implementation::step() {
  std::vector<uint32_t> admitted;
  Plan plan;
  plan.rows = schedule.plan(admitted);
  const uint64_t now = now_us();
  for (const uint32_t request : admitted) {
    live.at(request).started_us = now;
    events.push_back({.request = request, .kind = EventKind::started});
  }
  for (size_t i = 0; i < plan.rows.size();) {
    const Row& row = plan.rows[i];
    Live& each = live.at(row.request);
    each.slot = row.slot;
    if (!parts->slots->grow(row.slot, row.first + row.count).ok()) {
      finish(row.request, Finish::failed);
      plan.rows.erase(plan.rows.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    plan.tokens.insert(plan.tokens.end(), each.tokens.begin() + row.first, each.tokens.begin() + row.first + row.count);
    for (int s = 0; s < row.samples; s++) plan.samplers.push_back(&each.sampler);
    i++;
  }
  if (plan.rows.empty()) return;

  const std::vector<int32_t> sampled = parts->backend->run(plan);
  size_t next = 0;
  uint64_t prompt_tokens = 0;
  for (const Row& row : plan.rows) {
    const int prompt = static_cast<int>(live.at(row.request).request.prompt.size());
    prompt_tokens += static_cast<uint64_t>(std::clamp(prompt - row.first, 0, row.count));
    schedule.settle(row, row.samples);
    if (row.samples > 0) settle(row, sampled[next++]);
  }
  const std::lock_guard lock(mutex);
  stats.steps++;
  stats.tokens += sampled.size();
  stats.prompt_tokens += prompt_tokens;
}

// One more token of a sequence: it ends the answer, or its text goes out.
void Engine::Implementation::settle(const Row& row, int32_t token) {
  Live& each = live.at(row.request);
  each.tokens.push_back(token);
  each.sampler.accept(token);
  each.seq++;
  each.last_us = now_us();
  if (each.seq == 1) each.first_us = each.last_us;

  const std::vector<int32_t>& stops = parts->vocabulary.stops;
  if (std::binary_search(stops.begin(), stops.end(), token)) return finish(row.request, Finish::stop);
  Released released = each.releaser.push(token, parts->vocabulary.bytes[token]);
  const bool stopped = released.stopped;
  tell(each, std::move(released));
  if (stopped)
    finish(row.request, Finish::stop);
  else if (each.seq == static_cast<uint32_t>(each.request.tokens_max))
    finish(row.request, Finish::length);
}

void Engine::Implementation::tell(Live& each, Released released) {
  if (released.ids.empty()) return;
  each.released += static_cast<uint32_t>(released.ids.size());
  events.push_back({.request = each.request.id,
                    .seq = each.released,
                    .kind = EventKind::tokens,
                    .ids = std::move(released.ids),
                    .text = std::move(released.text)});
}

void Engine::Implementation::finish(uint32_t request, Finish reason) {
  Live& each = live.at(request);
  // Who ends an answer himself gets nothing after that; otherwise what was held back was text after all.
  if (reason == Finish::stop || reason == Finish::length) tell(each, each.releaser.flush());
  const auto span = [](uint64_t from, uint64_t to) { return static_cast<uint32_t>(from != 0 && to > from ? to - from : 0); };
  events.push_back({.request = request,
                    .seq = each.seq,
                    .kind = EventKind::finished,
                    .finish = reason,
                    .queue_us = span(each.submitted_us, each.started_us != 0 ? each.started_us : now_us()),
                    .prefill_us = span(each.started_us, each.first_us),
                    .decode_us = span(each.first_us, each.last_us),
                    .prompt_tokens = static_cast<uint32_t>(each.request.prompt.size())});
  if (const int slot = schedule.remove(request); slot >= 0) parts->slots->give_back(slot);
  live.erase(request);
}

void Engine::Implementation::tell_places() {
  int place = 0;
  for (const uint32_t request : schedule.waiting()) {
    Live& each = live.at(request);
    if (each.place == ++place) continue;
    each.place = place;
    events.push_back({.request = request, .seq = static_cast<uint32_t>(place), .kind = EventKind::queued});
  }
}

void Engine::Implementation::publish() {
  {
    const std::lock_guard lock(mutex);
    stats.running = schedule.running_count();
    stats.waiting = schedule.waiting_count();
    stats.kv_bytes_mapped = static_cast<uint64_t>(parts->slots->pages_mapped()) * static_cast<uint64_t>(parts->slots->layout().page_bytes);
  }
  if (!events.empty()) on_step(events);
  events.clear();
}

Result<std::vector<float>> Engine::Implementation::evaluate_now(const Evaluation& evaluation) {
  const int count = static_cast<int>(evaluation.tokens.size());
  const int chunk = std::min(evaluation.chunk_tokens, parts->schedule_limits.step_tokens_max);
  const int pages = parts->slots->layout().pages_for(count);
  const int slot = parts->slots->take(pages);
  if (slot < 0) return Status::error("no slot is free to evaluate in");
  std::vector<float> logits(static_cast<size_t>(count) * parts->info.vocabulary_size);
  Status status = parts->slots->grow(slot, count);
  for (int first = 0; status.ok() && first < count; first += chunk) {
    const int now = std::min(chunk, count - first);
    Plan plan;
    plan.rows = {{.request = 0, .slot = slot, .first = first, .count = now, .samples = now}};
    plan.tokens.assign(evaluation.tokens.begin() + first, evaluation.tokens.begin() + first + now);
    plan.logits = logits.data() + static_cast<size_t>(first) * parts->info.vocabulary_size;
    parts->backend->run(plan);
  }
  parts->slots->give_back(slot);
  if (!status.ok())
    return Status::error(text(count, " tokens need ", pages, " pages of KV memory, more than are free of ", parts->slots->pages_max(), " (",
                              status.message(), "); raise --kv-memory or evaluate fewer"));
  return logits;
}

Engine::Engine(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::load(const EngineOptions& options, OnStep on_step) {
  auto assembly = assemble(options);
  if (!assembly.ok()) return assembly.status();
  return std::unique_ptr<Engine>(new Engine(std::make_unique<Implementation>(assembly.take(), std::move(on_step))));
}

const ModelInfo& Engine::info() const { return implementation_->parts->info; }
const Vocabulary& Engine::vocabulary() const { return implementation_->parts->vocabulary; }
Status Engine::submit(Request request) { return implementation_->submit(std::move(request)); }
void Engine::cancel(uint32_t request) { implementation_->cancel(request); }
void Engine::close() { implementation_->close(); }

EngineStats Engine::stats() const {
  const std::lock_guard lock(implementation_->mutex);
  return implementation_->stats;
}

Result<std::vector<float>> Engine::evaluate(std::vector<int32_t> tokens, int chunk_tokens) {
  return implementation_->evaluate(std::move(tokens), chunk_tokens);
}

}  // namespace millrace
