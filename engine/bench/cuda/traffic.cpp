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
#include <cstdio>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/cuda/client.h"

using namespace millrace;
using bench::Client, bench::quantile, bench::Seen;

namespace {

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
  int answer = 0;           // tokens of the next turn's
  size_t cancelled_at = 0;  // of these; 0: never
};

class Crowd {
 public:
  Crowd(Client& client, int sequences, int length_max, int scale) : client_(client), sequences_(sequences), length_max_(length_max), scale_(scale) {
    for (int i = 0; i < tenants; i++) prefixes_.push_back(client.random_tokens(prefix_tokens / scale));
  }

  // The first quarter fills the machine.
  void run(double seconds) {
    const uint64_t begun = now_us(), end = begun + static_cast<uint64_t>(seconds * 1e6), measured_from = begun + (end - begun) / 4;
    bool is_measuring = false;
    for (uint64_t next_look = begun; now_us() < end;) {
      if (!is_measuring && now_us() >= measured_from) is_measuring = true, client_.take_step_ms();
      for (auto& [id, seen] : client_.take_ended(next_look)) go_on(end_of(id, seen), seen);
      while (static_cast<int>(running_.size()) < sequences_ + sequences_ / backlog_part && begin()) {
      }
      if (is_measuring) look();
      if (now_us() < next_look) continue;
      next_look = now_us() + 20'000;
      cancel();
    }
    steps_ms_ = client_.take_step_ms();
  }

  void report() {
    const Counts then = counts_;
    for (const auto& [id, conversation] : running_) client_.cancel(id);
    while (!running_.empty())
      for (auto& [id, seen] : client_.take_ended(now_us() + 1'000'000)) end_of(id, seen);
    const EngineStats stats = client_.engine().stats();
    const double p50 = quantile(steps_ms_, 0.5);
    std::printf("crowd: %.0f of %d sequences at once; %d turns, mean length %.0f; %d adopted, %d aliased, %d cancelled, %d failed\n", quantile(at_once_, 0.5), sequences_, then.turns,
                then.lengths / std::max(then.turns, 1), then.adopted, then.aliased, then.cancelled, then.failed);
    std::printf("crowd: steps p50 %.2f p99 %.2f max %.2f ms (%.1f times p50); KV held %.1f GiB, waste p50 %.2f%% max %.2f%%\n", p50, quantile(steps_ms_, 0.99), quantile(steps_ms_, 1),
                quantile(steps_ms_, 1) / p50, quantile(held_gib_, 0.5), 100 * quantile(waste_, 0.5), 100 * quantile(waste_, 1));
    std::printf("crowd: left behind: %d running, %d waiting, %llu bytes promised\n", stats.running, stats.waiting, static_cast<unsigned long long>(stats.kv_bytes_promised));
  }

 private:
  static constexpr int tenants = 8, prefix_tokens = 512, answer_min = 64, answer_max = 256, turn_min = 16, turn_max = 64;
  static constexpr int backlog_part = 8;  // so many more, for each that is to run, wait for one to end
  struct Counts {
    int turns = 0, adopted = 0, aliased = 0, cancelled = 0, failed = 0;
    double lengths = 0;
  };

  int between(int low, int high) { return low + static_cast<int>(client_.random.next() % static_cast<uint64_t>(high - low + 1)); }

  // What the conversation asks next.
  void ask(Conversation conversation, int more) {
    const std::vector<int32_t> asked = client_.random_tokens(more);
    conversation.tokens.insert(conversation.tokens.end(), asked.begin(), asked.end());
    conversation.answer = std::min(between(answer_min, answer_max), length_max_ - static_cast<int>(conversation.tokens.size()));
    conversation.cancelled_at = between(0, 19) == 0 ? static_cast<size_t>(between(1, conversation.answer)) : 0;
    asked_.push_back(std::move(conversation));
  }

  // The next turn of one that was here, or else a new conversation. False: too many wait already.
  bool begin() {
    if (asked_.empty()) ask({.tokens = prefixes_[static_cast<size_t>(between(0, tenants - 1))]}, between(32, 768 / scale_));
    const uint32_t id = client_.submit(asked_.front().tokens, asked_.front().answer, ServiceClass::chat, crowd_deadlines);
    if (id == 0) return false;
    running_[id] = std::move(asked_.front());
    asked_.pop_front();
    return true;
  }

  Conversation end_of(uint32_t id, const Seen& seen) {
    Conversation conversation = std::move(running_.extract(id).mapped());
    counts_.turns++;
    counts_.lengths += static_cast<double>(seen.prompt_tokens + seen.ids.size());
    counts_.cancelled += seen.finish == Finish::cancelled;
    counts_.failed += seen.finish == Finish::failed;
    (seen.cached_tokens > static_cast<uint32_t>(prefix_tokens / scale_) ? counts_.adopted : counts_.aliased) += seen.cached_tokens > 0;
    conversation.tokens.insert(conversation.tokens.end(), seen.ids.begin(), seen.ids.end());
    return conversation;
  }

  void go_on(Conversation conversation, const Seen& seen) {
    const bool has_room = static_cast<int>(conversation.tokens.size()) + turn_max + answer_max < length_max_;
    if (seen.finish == Finish::length && has_room && between(0, 9) < 6) ask(std::move(conversation), between(turn_min, turn_max));
  }

  void cancel() {
    for (const auto& [id, conversation] : running_)
      if (conversation.cancelled_at > 0 && client_.tokens_of(id) >= conversation.cancelled_at) client_.cancel(id);
  }

  // Whenever the engine has looked at its pages, which it does once a second; but what is mapped is as of now.
  void look() {
    const EngineStats stats = client_.engine().stats();
    if (std::exchange(held_, stats.kv_bytes_held) == stats.kv_bytes_held) return;
    waste_.push_back(1 - static_cast<double>(held_) / static_cast<double>(std::max<uint64_t>(stats.kv_bytes_mapped, 1)));
    held_gib_.push_back(static_cast<double>(held_) / (1 << 30));
    at_once_.push_back(stats.running);
  }

  Client& client_;
  const int sequences_, length_max_, scale_;
  std::vector<std::vector<int32_t>> prefixes_;
  std::map<uint32_t, Conversation> running_;  // those that wait too
  std::deque<Conversation> asked_;            // to be submitted
  Counts counts_;
  uint64_t held_ = 0;
  std::vector<double> waste_, held_gib_, at_once_, steps_ms_;
};

void crowd(const bench::Case& wanted, double seconds, int scale) {
  const int sequences = 1024 / scale, length_max = 1536;
  EngineOptions options = wanted.options();
  options.slots = sequences * 15 / 14;  // some are kept for voice
  options.context_tokens = length_max;
  Client client(options);
  Crowd crowd(client, sequences, length_max, scale);
  crowd.run(seconds);
  crowd.report();
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
