// How fast this machine's memory can be read: each thread sums its own part of a buffer that no cache holds, the best of some passes.
//
//     bandwidth THREADS        prints bytes a second
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr size_t buffer_bytes = size_t{512} << 20;
constexpr int passes = 7;

// Many chains, so that the additions never wait for each other.
uint64_t sum(const uint64_t* words, size_t count) {
  uint64_t chains[64] = {};
  for (size_t at = 0; at + 64 <= count; at += 64)
    for (size_t chain = 0; chain < 64; chain++) chains[chain] += words[at + chain];
  uint64_t total = 0;
  for (const uint64_t chain : chains) total += chain;
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = argc == 2 ? static_cast<size_t>(std::atoi(argv[1])) : 0;
  if (threads < 1 || threads > 1024) {
    std::fputs("bandwidth: give the number of threads\n", stderr);
    return 1;
  }
  const size_t words_a_thread = buffer_bytes / sizeof(uint64_t) / threads;
  std::vector<uint64_t> buffer(words_a_thread * threads, 1);
  double best_seconds = 1e9;
  uint64_t total = 0;
  for (int pass = 0; pass < passes; pass++) {
    std::vector<uint64_t> sums(threads);
    const auto started = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (size_t t = 0; t < threads; t++)
      team.emplace_back([&, t] { sums[t] = sum(buffer.data() + t * words_a_thread, words_a_thread); });
    for (std::thread& member : team) member.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    if (seconds < best_seconds) best_seconds = seconds;
    for (const uint64_t part : sums) total += part;
  }
  if (total != passes * buffer.size()) return 1;
  std::printf("%.0f\n", static_cast<double>(buffer.size() * sizeof(uint64_t)) / best_seconds);
  return 0;
}
