// The whole engine on a GPU, through its public face: what a decode step and a prefill take, sampling and host included. A step's time is
// (t(256 tokens out) - t(1 token out)) / 255, from the first submit to the last event, as its peers are measured.
//
//     bench_cuda_engine MODEL steps PRECISION [REPEATS]      batches of 1, 8, 64 and 256 prompts of 128 tokens
//     bench_cuda_engine MODEL prefill PRECISION [REPEATS]    one prompt of 4,096 tokens, and 64 of 128
//     bench_cuda_engine MODEL start PRECISION                from the program's first line to the first token of a prompt of 128; then the disk's own rate
//     bench_cuda_engine MODEL kl PRECISION TOKENS [CHUNK]    mean KL from the model in float32 on a CPU, and both perplexities, over a file of int32 token
//                                                            ids: 512 at once, or in steps of CHUNK
//     bench_cuda_engine MODEL trace PRECISION BATCH          a few steps of one batch, for a profiler
//     bench_cuda_engine MODEL logits PRECISION COUNT FILE [CHUNK]    teacher-forced logits of random tokens, for compare-logits.py
//
// PRECISION is that of case.h.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "bench/cuda/case.h"
#include "bench/cuda/disk_rate.h"
#include "bench/random.h"
#include "engine.h"

using namespace millrace;

namespace {

using bench::Case;
using Clock = std::chrono::steady_clock;

// Counts requests that have ended.
class Ends {
 public:
  Engine::OnStep listener() {
    return [this](std::span<const Event> events) {
      const std::lock_guard lock(mutex_);
      for (const Event& event : events) {
        if (event.kind != EventKind::finished) continue;
        ended_++;
        if (event.finish != Finish::length) std::printf("a request ended otherwise: %s\n", event.text.c_str());
      }
      heard_.notify_all();
    };
  }
  void await(int count) {
    std::unique_lock lock(mutex_);
    heard_.wait(lock, [&] { return ended_ >= count; });
    ended_ = 0;
  }

 private:
  std::mutex mutex_;
  std::condition_variable heard_;
  int ended_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Load {
  int batch, prompt_tokens, answer_tokens;
};

class Run {
 public:
  Run(const Case& wanted, int slots, int context, bool rests = true) {
    EngineOptions options = wanted.options();
    options.context_tokens = context;
    options.slots = slots;
    options.prefix_cache = false;
    engine_ = (rests ? bench::load_and_rest : bench::load)(options, ends_.listener());
  }

  // Milliseconds from the first submit to the last event.
  double time(const Load& load) {
    std::vector<Request> requests;
    for (int i = 0; i < load.batch; i++) {
      Request request{.id = ++last_, .tokens_max = load.answer_tokens, .ignores_end = true, .service = ServiceClass::voice};
      for (int t = 0; t < load.prompt_tokens; t++) request.prompt.push_back(static_cast<int32_t>(random_.next() % static_cast<uint64_t>(engine_->info().vocabulary_size)));
      request.deadlines = {.ttft_us = 60'000'000, .itl_us = 10'000'000};
      requests.push_back(std::move(request));
    }
    const auto begun = Clock::now();
    for (Request& request : requests)
      if (const Status status = engine_->submit(std::move(request)); !status.ok()) std::printf("refused: %s\n", status.message().c_str());
    ends_.await(load.batch);
    return std::chrono::duration<double, std::milli>(Clock::now() - begun).count();
  }

  double median_time(const Load& load, int repeats) {
    std::vector<double> times;
    for (int i = 0; i < repeats; i++) times.push_back(time(load));
    return median(times);
  }

  Engine& engine() { return *engine_; }

 private:
  Ends ends_;
  std::unique_ptr<Engine> engine_;
  bench::Random random_{7};
  uint32_t last_ = 0;
};

void steps(const Case& wanted, int repeats) {
  constexpr int context = 2048;
  for (const int batch : {1, 8, 64, 256}) {
    Run run(wanted, batch, context);
    run.time({batch, 128, 32});  // graphs, and what a step takes, are learnt
    run.time({batch, 128, 256});
    const double one = run.median_time({batch, 128, 1}, repeats), all = run.median_time({batch, 128, 256}, repeats), step = (all - one) / 255;
    const double bytes = static_cast<double>(run.engine().info().work.weight_bytes);
    std::printf("steps: batch %d: %.3f ms a step, %.0f tokens/s, weights at %.2f TB/s; t(1 out) %.1f ms\n", batch, step, batch / step * 1000, bytes / step / 1e9, one);
    const auto costs = run.engine().stats().step_costs;
    std::printf("# step %.0f us, row %.1f, token %.2f, sample %.2f, position %.5f, pair %.7f\n", costs.step_us, costs.row_us, costs.token_us, costs.sample_us, costs.context_us, costs.pair_us);
  }
}

void prefill(const Case& wanted, int repeats) {
  Run run(wanted, 64, 8192);
  for (const Load load : {Load{1, 4096, 1}, Load{64, 128, 1}}) {
    for (int i = 0; i < 4; i++) run.time(load);
    std::printf("prefill: %d x %d tokens: %.1f ms\n", load.batch, load.prompt_tokens, run.median_time(load, repeats));
  }
}

void logits(const Case& wanted, int count, const std::string& file, int chunk) {
  Run run(wanted, 1, 4096, false);
  bench::Random random(11);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; i++) tokens.push_back(static_cast<int32_t>(random.next() % static_cast<uint64_t>(run.engine().info().vocabulary_size)));
  std::ofstream out(file, std::ios::binary);
  const auto put = [&](const void* from, size_t bytes) { out.write(static_cast<const char*>(from), static_cast<std::streamsize>(bytes)); };
  const int32_t head[] = {count, run.engine().info().vocabulary_size};
  put(head, sizeof(head));
  put(tokens.data(), tokens.size() * sizeof(int32_t));
  const auto result = run.engine().evaluate(tokens, chunk);
  if (!result.ok()) return void(std::printf("%s\n", result.message().c_str()));
  put(result.value().data(), result.value().size() * sizeof(float));
}

// Log-softmax of one position, in place.
void normalize(std::span<float> logits) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit - highest));
  const auto normalizer = static_cast<float>(highest + std::log(total));
  for (float& logit : logits) logit -= normalizer;
}

void kl(const Case& wanted, const std::string& file, int chunk) {
  constexpr int window = 512;
  std::ifstream in(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  std::vector<int32_t> tokens(bytes.size() / sizeof(int32_t));
  std::memcpy(tokens.data(), bytes.data(), tokens.size() * sizeof(int32_t));
  Run exact({wanted.path, "float32"}, 1, 1024, false), other(wanted, 1, 1024, false);
  const auto vocabulary = static_cast<size_t>(exact.engine().info().vocabulary_size);
  double divergence = 0, exact_loss = 0, other_loss = 0;
  int64_t positions = 0, scored = 0;
  for (size_t first = 0; first + window <= tokens.size(); first += window) {
    const std::vector<int32_t> part(tokens.begin() + static_cast<std::ptrdiff_t>(first), tokens.begin() + static_cast<std::ptrdiff_t>(first) + window);
    auto p = exact.engine().evaluate(part, window).take(), q = other.engine().evaluate(part, chunk).take();
    for (size_t t = 0; t < window; t++) {
      const std::span ps(p.data() + t * vocabulary, vocabulary), qs(q.data() + t * vocabulary, vocabulary);
      normalize(ps);
      normalize(qs);
      for (size_t i = 0; i < vocabulary; i++) divergence += std::exp(static_cast<double>(ps[i])) * (static_cast<double>(ps[i]) - qs[i]);
      positions++;
      if (t + 1 == window) continue;
      exact_loss -= ps[static_cast<size_t>(part[t + 1])];
      other_loss -= qs[static_cast<size_t>(part[t + 1])];
      scored++;
    }
  }
  std::printf("kl: %s in steps of %d: mean KL %.5f over %lld positions, perplexity %.4f beside %.4f in float32\n", wanted.precision.c_str(), chunk, divergence / static_cast<double>(positions),
              static_cast<long long>(positions), std::exp(other_loss / static_cast<double>(scored)), std::exp(exact_loss / static_cast<double>(scored)));
}

void start(const Case& wanted) {
  const auto begun = Clock::now();
  Run run(wanted, 64, 2048, false);
  const auto loaded = Clock::now();
  run.time({1, 128, 1});
  const auto seconds = [](Clock::duration time) { return std::chrono::duration<double>(time).count(); };
  std::printf("start: first token after %.2f s, %.2f s of them loading\n", seconds(Clock::now() - begun), seconds(loaded - begun));
  bench::tell_disk_rate(wanted.path);  // last: a disk of a network remembers too what was read
}

void trace(const Case& wanted, int batch) {
  Run run(wanted, batch, 2048);
  run.time({batch, 128, 8});
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 3 ? words[2] : "";
  if (what == "steps" || what == "prefill") {
    (what == "steps" ? steps : prefill)({words[1], words[3]}, count > 4 ? std::atoi(words[4]) : 3);
  } else if (what == "start") {
    start({words[1], words[3]});
  } else if (what == "kl" && count >= 5) {
    kl({words[1], words[3]}, words[4], count > 5 ? std::atoi(words[5]) : 512);
  } else if (what == "trace" && count == 5) {
    trace({words[1], words[3]}, std::atoi(words[4]));
  } else if (what == "logits" && count >= 6) {
    logits({words[1], words[3]}, std::atoi(words[4]), words[5], count > 6 ? std::atoi(words[6]) : 512);
  } else {
    std::printf("usage: bench_cuda_engine MODEL steps|prefill PRECISION [REPEATS], MODEL start PRECISION, or MODEL logits PRECISION COUNT FILE [CHUNK]\n");
    return 2;
  }
  return 0;
}
