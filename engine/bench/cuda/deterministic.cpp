// DESIGN.md, determinism (d), word for word: the same bits whatever ran beside, in whatever batches, slices and states of the cache. Prompts of varied
// lengths, greedy and sampled, are answered one at a time by an engine that does nothing else, and then in company; what is compared are the ids of
// all tokens and the bits of their log-probabilities and of the three likeliest. Ends with 1 where one of them differs.
//
//     bench_cuda_deterministic MODEL PRECISION [PROMPTS TOKENS]    64 prompts with answers of 256 tokens
//
// PRECISION is that of case.h: deterministic or deterministic-kv8; stored shows that the comparison finds what differs, and cpu that it works.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cuda/client.h"

using namespace millrace;
using bench::Client, bench::Seen;

namespace {

constexpr int context_tokens = 2048, prompt_tokens_max = 1024, shared_tokens = 300, likeliest = 3;
constexpr Deadlines no_hurry{.ttft_us = 3'600'000'000, .itl_us = 60'000'000};

struct Asked {
  std::vector<Request> requests;
  std::vector<Request> others;  // company: their answers are nobody's
};

// Every third prompt begins as others do; half of the answers are sampled, a quarter with penalties.
Asked make_requests(int prompts, int answer_tokens, int vocabulary) {
  bench::Random random(3);
  const auto between = [&](int low, int high) { return low + static_cast<int>(random.next() % static_cast<uint64_t>(high - low + 1)); };
  const auto tokens = [&](int count) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; i++) ids.push_back(static_cast<int32_t>(random.next() % static_cast<uint64_t>(vocabulary)));
    return ids;
  };
  const std::vector<int32_t> shared = tokens(shared_tokens);
  Asked asked;
  for (int i = 0; i < prompts; i++) {
    Request request{.tokens_max = answer_tokens, .ignores_end = true, .service = static_cast<ServiceClass>(i % 3), .deadlines = no_hurry};
    if (i % 3 == 0) request.prompt = shared;
    const std::vector<int32_t> own = tokens(i % 4 == 0 ? between(1, 40) : between(1, prompt_tokens_max - shared_tokens));
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    if (i % 2 == 1) request.sampling = {.temperature = 0.8f, .top_k = i % 8 == 1 ? 40 : 0, .top_p = 0.95f, .seed = random.next()};
    if (i % 4 == 3) request.sampling.repetition_penalty = 1.1f, request.sampling.frequency_penalty = 0.2f;
    request.sampling.logprobs = likeliest;
    asked.requests.push_back(request);
    Request other{.prompt = tokens(between(1, 200)), .tokens_max = between(1, answer_tokens), .ignores_end = true, .deadlines = no_hurry};
    asked.others.push_back(std::move(other));
  }
  return asked;
}

// Deadlines loosen until the request is taken: they move slices, and no bit.
uint32_t submit(Client& client, Request request) {
  for (;; request.deadlines.itl_us *= 2) {
    const uint32_t id = client.submit(request);
    if (id != 0) return id;
    if (request.deadlines.itl_us > no_hurry.itl_us) {
      std::printf("refused: %s\n", client.why_refused.c_str());
      std::exit(1);
    }
  }
}

std::vector<Seen> answer_alone(Client& client, const Asked& asked) {
  std::vector<Seen> answers;
  for (const Request& request : asked.requests) answers.push_back(client.take(submit(client, request)));
  return answers;
}

// All at once in an order of its own, each with one of the others behind it; every second one of those is cancelled at its first tokens.
std::vector<Seen> answer_together(Client& client, const Asked& asked, int64_t itl_us, uint64_t seed) {
  bench::Random random(seed);
  const size_t count = asked.requests.size();
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = count; i > 1; i--) std::swap(order[i - 1], order[random.next() % i]);
  std::vector<uint32_t> ids(count), others(count);
  for (const size_t i : order) {
    Request request = asked.requests[i];
    request.deadlines.itl_us = itl_us;
    ids[i] = submit(client, std::move(request));
    others[i] = submit(client, asked.others[i]);
  }
  for (size_t i = 0; i < count; i += 2) client.cancel(others[i]);
  std::vector<Seen> answers;
  for (const uint32_t id : ids) answers.push_back(client.take(id));
  for (const uint32_t id : others) client.take(id);
  return answers;
}

class Comparison {
 public:
  Comparison(std::vector<Seen> alone, int answer_tokens) : alone_(std::move(alone)), answer_tokens_(static_cast<size_t>(answer_tokens)) {
    for (const Seen& seen : alone_) all_whole_ = is_whole(seen) && all_whole_;
    std::printf("deterministic: %zu prompts of %u tokens at most, %zu tokens each: answered alone%s\n", alone_.size(), longest(), answer_tokens_, all_whole_ ? "" : ", SOME NOT TO THEIR END");
  }
  void compare(const std::string& name, const std::vector<Seen>& answers) {
    size_t prompts = 0, tokens = 0, logprobs = 0;
    uint64_t cached = 0;
    for (size_t i = 0; i < answers.size(); i++) {
      const Seen &one = alone_[i], &other = answers[i];
      all_whole_ = is_whole(other) && all_whole_;
      cached += other.cached_tokens;
      size_t differing = 0, bits = 0;
      for (size_t t = 0; t < answer_tokens_; t++) differing += t >= other.ids.size() || t >= one.ids.size() || one.ids[t] != other.ids[t];
      for (size_t t = 0; t < answer_tokens_ * (1 + likeliest); t++)
        bits += t >= other.logprobs.size() || t >= one.logprobs.size() || std::memcmp(&one.logprobs[t], &other.logprobs[t], sizeof(TokenLogprob)) != 0;
      prompts += differing + bits > 0;
      tokens += differing;
      logprobs += bits;
    }
    differing_ += prompts;
    std::printf("deterministic: %s: %zu of %zu prompts differ, in %zu of %zu tokens and %zu of %zu log-probabilities; %llu tokens of prompts were cached\n", name.c_str(), prompts,
                answers.size(), tokens, answers.size() * answer_tokens_, logprobs, answers.size() * answer_tokens_ * (1 + likeliest), static_cast<unsigned long long>(cached));
    std::fflush(stdout);
  }
  void compare_logits(Engine& engine, const std::vector<int32_t>& tokens) {
    std::vector<float> first;
    for (const int chunk : {512, 128, 100, 17}) {
      auto result = engine.evaluate(tokens, chunk);
      if (!result.ok()) return void((std::printf("%s\n", result.message().c_str()), all_whole_ = false));
      const std::vector<float> logits = result.take();
      if (first.empty()) first = logits;
      size_t bits = 0;
      for (size_t i = 0; i < first.size(); i++) bits += std::memcmp(&first[i], &logits[i], sizeof(float)) != 0;
      differing_ += bits > 0;
      std::printf("deterministic: logits of %zu tokens in chunks of %d: %zu of %zu differ from those in chunks of 512\n", tokens.size(), chunk, bits, first.size());
    }
  }
  bool is_right() const { return differing_ == 0 && all_whole_; }
  const Seen& alone(size_t i) const { return alone_[i]; }

 private:
  bool is_whole(const Seen& seen) const { return seen.finish == Finish::length && seen.ids.size() == answer_tokens_ && seen.logprobs.size() == answer_tokens_ * (1 + likeliest); }
  unsigned longest() const {
    unsigned most = 0;
    for (const Seen& seen : alone_) most = std::max(most, seen.prompt_tokens);
    return most;
  }

  std::vector<Seen> alone_;
  size_t answer_tokens_, differing_ = 0;
  bool all_whole_ = true;
};

EngineOptions options_of(const bench::Case& wanted, int slots, bool has_cache) {
  EngineOptions options = wanted.options();
  options.slots = slots;
  options.context_tokens = context_tokens;
  options.prefix_cache = has_cache;
  return options;
}

bool run(const bench::Case& wanted, int prompts, int answer_tokens) {
  Client first(options_of(wanted, 1, false));
  const Asked asked = make_requests(prompts, answer_tokens, first.engine().info().vocabulary_size);
  Comparison comparison(answer_alone(first, asked), answer_tokens);
  std::vector<int32_t> tokens = asked.requests.back().prompt;
  tokens.insert(tokens.end(), comparison.alone(asked.requests.size() - 1).ids.begin(), comparison.alone(asked.requests.size() - 1).ids.end());
  comparison.compare_logits(first.engine(), tokens);
  first.engine().close();
  // Slots bound a batch, and beyond 200 or so raise how many tokens a step may have; short deadlines make slices small.
  struct Round {
    int slots;
    int64_t itl_us;
    bool has_cache;
  };
  const Round rounds[] = {{2 * prompts, no_hurry.itl_us, false}, {prompts / 5 + 2, 50'000, false}, {448, 50'000, true}, {prompts / 2 + 1, no_hurry.itl_us, true}};
  for (const Round& round : rounds) {
    Client client(options_of(wanted, round.slots, round.has_cache));
    const std::string name = std::to_string(round.slots) + " slots, " + (round.itl_us < no_hurry.itl_us ? "short deadlines" : "no hurry");
    for (int pass = 0; pass < (round.has_cache ? 2 : 1); pass++)
      comparison.compare(name + (!round.has_cache ? ", no cache" : pass == 0 ? ", a cache" : ", again"), answer_together(client, asked, round.itl_us, static_cast<uint64_t>(round.slots + pass)));
  }
  std::printf("deterministic: %s\n", comparison.is_right() ? "the same bits" : "NOT THE SAME");
  return comparison.is_right();
}

}  // namespace

int main(int count, char** words) {
  const int prompts = count > 3 ? std::atoi(words[3]) : 64, answer_tokens = count > 4 ? std::atoi(words[4]) : 256;
  if (count < 3 || prompts < 1 || answer_tokens < 1 || answer_tokens > context_tokens - prompt_tokens_max) {
    std::printf("usage: bench_cuda_deterministic MODEL PRECISION [PROMPTS TOKENS]\n");
    return 2;
  }
  return run({words[1], words[2]}, prompts, answer_tokens) ? 0 : 1;
}
