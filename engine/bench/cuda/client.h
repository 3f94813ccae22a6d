// An engine, and who asks it: what each request was told, and when.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "bench/cuda/case.h"
#include "bench/random.h"

namespace millrace::bench {

// One request as its owner saw it. Times are in microseconds of now_us().
struct Seen {
  uint64_t submitted_us = 0, ended_us = 0;
  std::vector<uint64_t> token_us;
  uint32_t prompt_tokens = 0, cached_tokens = 0;
  Finish finish = Finish::failed;
  std::vector<int32_t> ids;
  std::vector<TokenLogprob> logprobs;  // as the events have them, where they were asked for

  double ttft_ms() const { return token_us.empty() ? 0 : static_cast<double>(token_us[0] - submitted_us) / 1000; }
};

inline double quantile(std::vector<double> values, double part) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<size_t>(part * static_cast<double>(values.size())))];
}

class Client {
 public:
  explicit Client(const EngineOptions& options) : engine_(load_and_rest(options, listener())) {}

  std::vector<int32_t> random_tokens(int count) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < count; i++) tokens.push_back(static_cast<int32_t>(random.next() % static_cast<uint64_t>(engine_->info().vocabulary_size)));
    return tokens;
  }
  // The request's number; 0 where it was refused: then `why_refused` tells.
  uint32_t submit(std::vector<int32_t> prompt, int answer_tokens, ServiceClass service, const Deadlines& deadlines) {
    return submit({.prompt = std::move(prompt), .tokens_max = answer_tokens, .ignores_end = true, .service = service, .deadlines = deadlines});
  }
  uint32_t submit(Request request) {
    request.id = ++last_;
    {
      const std::lock_guard lock(mutex_);
      seen_[last_].submitted_us = now_us();
    }
    const Status status = engine_->submit(std::move(request));
    if (status.ok()) return last_;
    why_refused = status.message();
    const std::lock_guard lock(mutex_);
    seen_.erase(last_);
    return 0;
  }
  void cancel(uint32_t id) { engine_->cancel(id); }
  // Waits for the end of a request, and forgets it.
  Seen take(uint32_t id) {
    std::unique_lock lock(mutex_);
    heard_.wait(lock, [&] { return seen_.at(id).ended_us != 0; });
    return std::move(seen_.extract(id).mapped());
  }
  // Those that have ended, forgotten then; waits for one until the time given.
  std::vector<std::pair<uint32_t, Seen>> take_ended(uint64_t until_us) {
    std::unique_lock lock(mutex_);
    const auto ended = [&] { return std::ranges::any_of(seen_, [](const auto& each) { return each.second.ended_us != 0; }); };
    heard_.wait_for(lock, std::chrono::microseconds(std::max<int64_t>(0, static_cast<int64_t>(until_us) - static_cast<int64_t>(now_us()))), ended);
    std::vector<std::pair<uint32_t, Seen>> taken;
    for (auto each = seen_.begin(); each != seen_.end();) {
      const auto here = each++;
      if (here->second.ended_us != 0) taken.emplace_back(here->first, std::move(seen_.extract(here).mapped()));
    }
    return taken;
  }
  size_t tokens_of(uint32_t id) {
    const std::lock_guard lock(mutex_);
    const auto found = seen_.find(id);
    return found == seen_.end() ? 0 : found->second.token_us.size();
  }
  // How long steps took that sampled something: from one's events to the next one's, in milliseconds, since the last call.
  std::vector<double> take_step_ms() {
    const std::lock_guard lock(mutex_);
    return std::exchange(step_ms_, {});
  }
  Engine& engine() { return *engine_; }

  Random random{11};
  std::string why_refused;

 private:
  Engine::OnStep listener() {
    return [this](std::span<const Event> events) {
      const uint64_t now = now_us();
      const std::lock_guard lock(mutex_);
      bool has_tokens = false, has_ended = false;
      for (const Event& event : events) {
        const auto found = seen_.find(event.request);
        if (found == seen_.end()) continue;
        Seen& seen = found->second;
        if (event.kind == EventKind::tokens) {
          has_tokens = true;
          seen.token_us.insert(seen.token_us.end(), event.ids.size(), now);
          seen.ids.insert(seen.ids.end(), event.ids.begin(), event.ids.end());
          seen.logprobs.insert(seen.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
        }
        if (event.kind != EventKind::finished) continue;
        has_ended = true;
        seen.ended_us = now;
        seen.finish = event.finish;
        seen.prompt_tokens = event.prompt_tokens;
        seen.cached_tokens = event.cached_tokens;
        if (event.finish == Finish::failed) std::printf("# a request failed: %s\n", event.text.c_str());
      }
      if (has_tokens && last_step_us_ != 0) step_ms_.push_back(static_cast<double>(now - last_step_us_) / 1000);
      if (has_tokens) last_step_us_ = now;
      if (has_ended) heard_.notify_all();
    };
  }

  std::mutex mutex_;  // guards what follows, up to the blank line
  std::condition_variable heard_;
  std::map<uint32_t, Seen> seen_;
  std::vector<double> step_ms_;
  uint64_t last_step_us_ = 0;

  uint32_t last_ = 0;
  std::unique_ptr<Engine> engine_;
};

}  // namespace millrace::bench
