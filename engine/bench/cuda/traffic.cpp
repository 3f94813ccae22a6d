// The engine under traffic, through its public face: what streams feel of others' prompts, what a long mixed crowd leaves behind, and what a
// shared prefix costs who finds it.
//
//     bench_cuda_traffic MODEL interference PRECISION [SECONDS]    32 streams, and a prompt of 4,096 tokens every half second
//     bench_cuda_traffic MODEL crowd PRECISION [SECONDS]           1,024 sequences that join, end, adopt, alias and are cancelled
//     bench_cuda_traffic MODEL prefixes PRECISION [SECONDS]        50 requests a second that begin with the same 4,096 tokens
//
// PRECISION is that of case.h. With cpu all numbers are a sixteenth of these.
#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "bench/cuda/case.h"
#include "bench/random.h"

using namespace millrace;

namespace {

// One request as its owner saw it. Times are in microseconds of now_us().
struct Seen {
  uint64_t submitted_us = 0, ended_us = 0;
  std::vector<uint64_t> token_us;
  uint32_t prompt_tokens = 0, cached_tokens = 0;
  Finish finish = Finish::failed;
  std::vector<int32_t> ids;

  double ttft_ms() const { return token_us.empty() ? 0 : static_cast<double>(token_us[0] - submitted_us) / 1000; }
};

double quantile(std::vector<double> values, double part) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<size_t>(part * static_cast<double>(values.size())))];
}

class Client {
 public:
  explicit Client(const EngineOptions& options) : engine_(bench::load_and_rest(options, listener())) {}

  std::vector<int32_t> random_tokens(int count) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < count; i++) tokens.push_back(static_cast<int32_t>(random.next() % static_cast<uint64_t>(engine_->info().vocabulary_size)));
    return tokens;
  }
  // The request's number; 0 where it was refused: then `why_refused` tells.
  uint32_t submit(std::vector<int32_t> prompt, int answer_tokens, ServiceClass service, const Deadlines& deadlines) {
    Request request{.id = ++last_, .prompt = std::move(prompt), .tokens_max = answer_tokens, .ignores_end = true, .service = service, .deadlines = deadlines};
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

  bench::Random random{11};
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

constexpr int64_t voice_itl_us = 60'000;  // shared/classes.ts
constexpr int context_tokens = 8192, stream_tokens_max = 8000;  // of streams that are cancelled in the end
constexpr Deadlines no_hurry{.ttft_us = 60'000'000, .itl_us = 10'000'000}, crowd_deadlines{.ttft_us = 60'000'000, .itl_us = 120'000, .wait_us_max = 600'000'000};

void sleep_until(uint64_t time_us) {
  const uint64_t now = now_us();
  if (time_us > now) std::this_thread::sleep_for(std::chrono::microseconds(time_us - now));
}

// Streams for some seconds, with a prompt every so often or with none; the streams' gaps by stream and position, in milliseconds.
struct Streamed {
  std::vector<std::vector<double>> gaps;
  std::vector<double> ttft_ms;
  int sent = 0, completed = 0;
  double tokens_a_second = 0;
};

struct StreamLoad {
  int streams = 32, prompt_tokens = 128;
  int arriving_tokens = 4096, answer_tokens = 16;
  uint64_t every_us = 500'000;
};

// Begins the streams, the same ones each time. None where some are not promised so much.
std::vector<uint32_t> begin_streams(Client& client, const StreamLoad& load, const Deadlines& deadlines) {
  client.random = bench::Random(5);
  std::vector<uint32_t> streams;
  for (int i = 0; i < load.streams; i++) streams.push_back(client.submit(client.random_tokens(load.prompt_tokens), stream_tokens_max, ServiceClass::voice, deadlines));
  const auto have_begun = [&] { return std::ranges::all_of(streams, [&](uint32_t id) { return client.tokens_of(id) >= 2; }); };
  for (const uint64_t end = now_us() + 2'000'000; !have_begun();) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (now_us() < end) continue;
    for (const uint32_t id : streams) client.cancel(id);
    for (const uint32_t id : streams)
      if (id != 0) client.take(id);
    return {};
  }
  return streams;
}

// Loosens the deadlines until all streams are promised them.
Streamed run_streams(Client& client, const StreamLoad& load, double seconds, bool has_arrivals, Deadlines& deadlines) {
  std::vector<uint32_t> streams, prompts;
  while ((streams = begin_streams(client, load, deadlines)).empty()) deadlines.itl_us = deadlines.itl_us * 5 / 4;
  const uint64_t begun = now_us(), end = begun + static_cast<uint64_t>(seconds * 1e6);
  for (uint64_t due = begun; has_arrivals && due < end; due += load.every_us) {
    sleep_until(due);
    prompts.push_back(client.submit(client.random_tokens(load.arriving_tokens), load.answer_tokens, ServiceClass::chat, {.ttft_us = 400'000, .itl_us = 100'000}));
  }
  sleep_until(end);
  Streamed run{.sent = static_cast<int>(prompts.size())};
  for (const uint32_t id : streams) client.cancel(id);
  uint64_t tokens = 0;
  for (const uint32_t id : streams) {
    const Seen seen = client.take(id);
    run.gaps.emplace_back();
    for (size_t i = 1; i < seen.token_us.size(); i++) run.gaps.back().push_back(static_cast<double>(seen.token_us[i] - seen.token_us[i - 1]) / 1000);
    tokens += static_cast<uint64_t>(std::ranges::count_if(seen.token_us, [&](uint64_t time) { return time >= begun && time < end; }));
  }
  run.tokens_a_second = static_cast<double>(tokens) / seconds;
  for (const uint32_t id : prompts) {
    if (id == 0) continue;
    const Seen seen = client.take(id);
    run.completed += seen.finish == Finish::length ? 1 : 0;
    run.ttft_ms.push_back(seen.ttft_ms());
  }
  return run;
}

std::vector<double> flat(const std::vector<std::vector<double>>& lists) {
  std::vector<double> all;
  for (const std::vector<double>& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

void interference(const bench::Case& wanted, double seconds, int scale) {
  EngineOptions options = wanted.options();
  options.slots = 48;
  options.context_tokens = context_tokens;
  options.prefix_cache = false;
  Client client(options);
  const StreamLoad load{.streams = 32 / scale, .prompt_tokens = 128 / scale, .arriving_tokens = 4096 / scale};
  // What steps take is learnt first. Streams are promised what voice is, or on a machine too slow for that, half more than they need.
  Deadlines patient = no_hurry;
  run_streams(client, load, 3, true, patient);
  const double quiet_ms = quantile(flat(run_streams(client, load, 2, false, patient).gaps), 0.5);
  Deadlines deadlines{.ttft_us = 2'000'000, .itl_us = std::max(voice_itl_us, static_cast<int64_t>(quiet_ms * 1500))};
  run_streams(client, load, 3, true, deadlines);
  const Streamed quiet = run_streams(client, load, seconds, false, deadlines), loaded = run_streams(client, load, seconds, true, deadlines);
  std::vector<double> ratios;
  for (size_t stream = 0; stream < quiet.gaps.size(); stream++)
    for (size_t i = 0; i < std::min(quiet.gaps[stream].size(), loaded.gaps[stream].size()); i++) ratios.push_back(loaded.gaps[stream][i] / std::max(quiet.gaps[stream][i], 0.001));
  const std::vector<double> gaps = flat(loaded.gaps), quiet_gaps = flat(quiet.gaps);
  std::printf("interference: %d streams are promised a token every %.2f ms\n", load.streams, static_cast<double>(deadlines.itl_us) / 1000);
  std::printf("interference: gaps quiet p50 %.2f p99 %.2f ms, with prompts p50 %.2f p99 %.2f max %.2f ms; each over the quiet one at its position: p50 %.2f p99 %.2f\n", quantile(quiet_gaps, 0.5),
              quantile(quiet_gaps, 0.99), quantile(gaps, 0.5), quantile(gaps, 0.99), quantile(gaps, 1), quantile(ratios, 0.5), quantile(ratios, 0.99));
  std::printf("interference: %d of %d prompts completed, TTFT p50 %.0f p99 %.0f ms; streams %.0f tokens/s, quiet %.0f\n", loaded.completed, loaded.sent, quantile(loaded.ttft_ms, 0.5),
              quantile(loaded.ttft_ms, 0.99), loaded.tokens_a_second, quiet.tokens_a_second);
}

// A conversation: a tenant's prefix, then turns. Its next turn goes on where the last one ended.
struct Conversation {
  std::vector<int32_t> tokens;
  size_t cancelled_at = 0;  // tokens; 0: never
};

void crowd(const bench::Case& wanted, double seconds, int scale) {
  const int sequences = 1024 / scale, tenants = 8, prefix_tokens = 512, length_max = 1536;
  EngineOptions options = wanted.options();
  options.slots = sequences * 17 / 16;  // some are kept for voice
  options.context_tokens = length_max;
  Client client(options);
  std::vector<std::vector<int32_t>> prefixes;
  for (int i = 0; i < tenants; i++) prefixes.push_back(client.random_tokens(prefix_tokens / scale));
  const auto between = [&](int low, int high) { return low + static_cast<int>(client.random.next() % static_cast<uint64_t>(high - low + 1)); };
  std::map<uint32_t, Conversation> running;
  uint64_t turns = 0, adopted = 0, aliased = 0, cancelled = 0, failed = 0, lengths = 0;
  // False: too many wait already.
  const auto begin = [&](Conversation conversation) {
    const bool is_new = conversation.tokens.empty();
    if (is_new) conversation.tokens = prefixes[static_cast<size_t>(between(0, tenants - 1))];
    const std::vector<int32_t> more = client.random_tokens(is_new ? between(32, 768 / scale) : between(16, 64));
    conversation.tokens.insert(conversation.tokens.end(), more.begin(), more.end());
    const int answer = std::min(between(64, 256), length_max - static_cast<int>(conversation.tokens.size()));
    conversation.cancelled_at = between(0, 19) == 0 ? static_cast<size_t>(between(1, answer)) : 0;
    const uint32_t id = client.submit(conversation.tokens, answer, ServiceClass::chat, crowd_deadlines);
    if (id != 0) running[id] = std::move(conversation);
    return id != 0;
  };
  const auto end_of = [&](uint32_t id, Seen& seen) {
    Conversation conversation = std::move(running.extract(id).mapped());
    turns++;
    lengths += seen.prompt_tokens + seen.ids.size();
    cancelled += seen.finish == Finish::cancelled;
    failed += seen.finish == Finish::failed;
    (seen.cached_tokens > static_cast<uint32_t>(prefix_tokens / scale) ? adopted : aliased) += seen.cached_tokens > 0;
    conversation.tokens.insert(conversation.tokens.end(), seen.ids.begin(), seen.ids.end());
    return conversation;
  };
  const uint64_t begun = now_us(), end = begun + static_cast<uint64_t>(seconds * 1e6);
  // The first quarter fills the machine.
  const uint64_t measured_from = begun + (end - begun) / 4;
  std::vector<double> waste, held_gib, at_once;
  bool is_measuring = false;
  for (uint64_t next_look = begun; now_us() < end;) {
    if (!is_measuring && now_us() >= measured_from) {
      is_measuring = true;
      client.take_step_ms();
    }
    for (auto& [id, seen] : client.take_ended(next_look)) {
      Conversation conversation = end_of(id, seen);
      const bool goes_on = seen.finish == Finish::length && static_cast<int>(conversation.tokens.size()) + 320 < length_max && between(0, 9) < 6;
      if (goes_on) begin(std::move(conversation));
    }
    while (static_cast<int>(running.size()) < sequences && begin({})) {
    }
    if (now_us() < next_look) continue;
    next_look = now_us() + 20'000;
    for (const auto& [id, conversation] : running)
      if (conversation.cancelled_at > 0 && client.tokens_of(id) >= conversation.cancelled_at) client.cancel(id);
    const EngineStats stats = client.engine().stats();
    if (is_measuring) {
      waste.push_back(1 - static_cast<double>(stats.kv_bytes_held) / static_cast<double>(std::max<uint64_t>(stats.kv_bytes_mapped, 1)));
      held_gib.push_back(static_cast<double>(stats.kv_bytes_held) / (1 << 30));
      at_once.push_back(stats.running);
    }
  }
  const std::vector<double> steps = client.take_step_ms();
  const uint64_t turns_then = turns, cancelled_then = cancelled;
  for (const auto& [id, conversation] : running) client.cancel(id);
  while (!running.empty())
    for (auto& [id, seen] : client.take_ended(now_us() + 1'000'000)) end_of(id, seen);
  const EngineStats stats = client.engine().stats();
  const double p50 = quantile(steps, 0.5);
  std::printf("crowd: %.0f of %d sequences at once; %llu turns, mean length %.0f; %llu adopted, %llu aliased, %llu cancelled, %llu failed\n", quantile(at_once, 0.5), sequences,
              static_cast<unsigned long long>(turns_then), static_cast<double>(lengths) / static_cast<double>(std::max<uint64_t>(turns, 1)), static_cast<unsigned long long>(adopted), static_cast<unsigned long long>(aliased),
              static_cast<unsigned long long>(cancelled_then), static_cast<unsigned long long>(failed));
  std::printf("crowd: steps p50 %.2f p99 %.2f max %.2f ms (%.1f times p50); KV held %.1f GiB, waste p50 %.2f%% max %.2f%%\n", p50, quantile(steps, 0.99), quantile(steps, 1), quantile(steps, 1) / p50,
              quantile(held_gib, 0.5), 100 * quantile(waste, 0.5), 100 * quantile(waste, 1));
  std::printf("crowd: left behind: %d running, %d waiting, %llu bytes promised\n", stats.running, stats.waiting, static_cast<unsigned long long>(stats.kv_bytes_promised));
}

void prefixes(const bench::Case& wanted, double seconds, int scale) {
  constexpr int streams_count = 32, own_tokens = 32, answer_tokens = 16;
  constexpr uint64_t every_us = 20'000;
  EngineOptions options = wanted.options();
  options.slots = 96;
  options.context_tokens = context_tokens;
  Client client(options);
  const std::vector<int32_t> prefix = client.random_tokens(4096 / scale);
  std::vector<uint32_t> streams;
  for (int i = 0; i < streams_count / scale; i++) streams.push_back(client.submit(client.random_tokens(128 / scale), stream_tokens_max, ServiceClass::chat, no_hurry));
  client.take(client.submit(prefix, 1, ServiceClass::chat, no_hurry));
  // In turns, so that what the machine does meanwhile meets both alike.
  std::array<std::vector<double>, 2> ttft_ms, step_ms;
  constexpr int rounds = 6;
  for (int round = 0; round < rounds; round++) {
    const bool has_prefix = round % 2 != 0;
    client.take_step_ms();
    std::vector<uint32_t> requests;
    const uint64_t begun = now_us();
    for (uint64_t due = begun; due < begun + static_cast<uint64_t>(seconds * 1e6 / rounds); due += every_us * static_cast<uint64_t>(scale)) {
      sleep_until(due);
      std::vector<int32_t> prompt = has_prefix ? prefix : std::vector<int32_t>();
      const std::vector<int32_t> own = client.random_tokens(own_tokens);
      prompt.insert(prompt.end(), own.begin(), own.end());
      if (const uint32_t id = client.submit(std::move(prompt), answer_tokens, ServiceClass::chat, no_hurry); id != 0)
        requests.push_back(id);
      else
        std::printf("# refused: %s\n", client.why_refused.c_str());
    }
    for (const uint32_t id : requests) {
      const Seen seen = client.take(id);
      if (has_prefix && seen.cached_tokens < prefix.size()) std::printf("# only %u tokens were cached\n", seen.cached_tokens);
      ttft_ms[has_prefix].push_back(seen.ttft_ms());
    }
    for (const double ms : client.take_step_ms()) step_ms[has_prefix].push_back(ms);
  }
  for (const uint32_t id : streams) client.cancel(id);
  std::printf("prefixes: TTFT p50 %.2f ms with the prefix, %.2f without: %.2f more; p99 %.2f and %.2f\n", quantile(ttft_ms[1], 0.5), quantile(ttft_ms[0], 0.5),
              quantile(ttft_ms[1], 0.5) - quantile(ttft_ms[0], 0.5), quantile(ttft_ms[1], 0.99), quantile(ttft_ms[0], 0.99));
  std::printf("prefixes: steps p50 %.2f and %.2f ms, p99 %.2f and %.2f: %.2f times\n", quantile(step_ms[1], 0.5), quantile(step_ms[0], 0.5), quantile(step_ms[1], 0.99), quantile(step_ms[0], 0.99),
              quantile(step_ms[1], 0.99) / quantile(step_ms[0], 0.99));
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 3 ? words[2] : "";
  if (what != "interference" && what != "crowd" && what != "prefixes") {
    std::printf("usage: bench_cuda_traffic MODEL interference|crowd|prefixes PRECISION [SECONDS]\n");
    return 2;
  }
  const bench::Case wanted{words[1], words[3]};
  const int scale = wanted.precision == "cpu" ? 16 : 1;
  const double seconds = count > 4 ? std::atof(words[4]) : what == "crowd" ? 120 : what == "interference" ? 16 : 24;
  (what == "crowd" ? crowd : what == "interference" ? interference : prefixes)(wanted, seconds, scale);
  return 0;
}
