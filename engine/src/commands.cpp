// The engine's face: what any thread may ask of it.
#include "base/text.h"
#include "implementation.h"
#include "request.h"

namespace millrace {

Engine::Implementation::Implementation(std::unique_ptr<Assembly> assembly, OnStep listener)
    : parts(std::move(assembly)), schedule(parts->schedule_limits, [this](uint32_t request, int pages) { return take_slot(request, pages); },
               [this](int slot) { parts->slots->give_back(slot); }),
      on_step(std::move(listener)) {
  stats.slots = parts->options.slots;
  stats.kv_bytes_max = static_cast<uint64_t>(parts->slots->pages_max()) * static_cast<uint64_t>(parts->slots->plan().page_bytes());
  thread = std::thread([this] { work(); });
}

Status Engine::Implementation::submit(Request request, Decision* decision) {
  if (Status status = check_request(request, parts->info); !status.ok()) return status;
  // What the answer is continued with is computed as the prompt is.
  const int given_tokens = static_cast<int>(request.prompt.size() + request.continued.size());
  const int sampled_max = request.tokens_max - static_cast<int>(request.continued.size());
  const int asked_tokens = given_tokens + sampled_max;
  if (!schedule.fits_ever(given_tokens, sampled_max))
    return Status::error(text("a sequence of ", asked_tokens, " tokens needs ", parts->schedule_limits.page_need.of(asked_tokens), " pages of KV memory, and there are ", parts->schedule_limits.pages_max, "; raise --kv-memory or ask for fewer tokens"));
  {
    const std::lock_guard lock(mutex);
    if (closing) return Status::error("the engine is closed");
    if (schedule.contains(request.id)) return Status::error(text("request ", request.id, " is under way already"));
    const Decision made = schedule.submit({request.id, given_tokens, sampled_max, request.deadlines, request.service, request.tenant, request.tenant_weight,
                                           request.grammar != nullptr},
                                          clock_us());
    if (decision != nullptr) *decision = made;
    if (made.verdict == Verdict::refused) return refusal(request, schedule, parts->schedule_limits);
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

void Engine::Implementation::hold(uint32_t request, bool is_held) {
  {
    const std::lock_guard lock(mutex);
    schedule.hold(request, is_held, clock_us());
    is_changed = true;
  }
  wake.notify_one();
}

Result<std::vector<float>> Engine::Implementation::evaluate(std::vector<int32_t> tokens, int chunk_tokens) {
  if (Status status = check_tokens(tokens, parts->info); !status.ok()) return status;
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
  std::call_once(joined, [this] {
    thread.join();
    parts->release();
    const std::lock_guard lock(mutex);
    stats.kv_bytes_mapped = stats.kv_bytes_held = 0;
  });
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
Result<std::shared_ptr<const Grammar>> Engine::compile(const Format& format) { return implementation_->parts->formats->compile(format); }
Status Engine::submit(Request request, Decision* decision) { return implementation_->submit(std::move(request), decision); }
void Engine::cancel(uint32_t request) { implementation_->cancel(request); }
void Engine::pause(uint32_t request) { implementation_->hold(request, true); }
void Engine::resume(uint32_t request) { implementation_->hold(request, false); }
void Engine::close() { implementation_->close(); }

EngineStats Engine::stats() const {
  const std::lock_guard lock(implementation_->mutex);
  return implementation_->stats;
}

Result<std::vector<float>> Engine::evaluate(std::vector<int32_t> tokens, int chunk_tokens) {
  return implementation_->evaluate(std::move(tokens), chunk_tokens);
}

}  // namespace millrace
