#include "team.h"

#include <time.h>

#include <algorithm>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace millrace {
namespace {

// About 50 us: longer than what the leader does alone between two pieces of work, shorter than a scheduler's slice.
constexpr int spins_max = 2000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Beside somebody who wants its core too, a member works so long and then rests as long. The kernel gives a core that two want to each for
// some milliseconds: a member that takes all it can get loses the core with a chunk in hand, for which the whole team waits, and as often
// drives the other onto the leader's core. Who rests half the time keeps the other where it is, and goes unharmed.
constexpr int64_t stint_us = 700, rest_us = 700;
constexpr int64_t slice_us = 2000;   // so long without the core at once means that somebody else has it
constexpr int64_t wary_us = 50'000;  // how long that is remembered

int64_t clock_us(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return int64_t{1'000'000} * time.tv_sec + time.tv_nsec / 1000;
}

class Stint {
 public:
  Stint() { begin(); }

  void begin() {
    begun_us_ = clock_us(CLOCK_MONOTONIC);
    worked_us_ = clock_us(CLOCK_THREAD_CPUTIME_ID);
  }

  // Between two chunks.
  void rest_if_contended() {
    const int64_t now = clock_us(CLOCK_MONOTONIC), long_us = now - begun_us_;
    if (long_us < stint_us) return;
    if (long_us - (clock_us(CLOCK_THREAD_CPUTIME_ID) - worked_us_) > slice_us) wary_until_us_ = now + wary_us;
    if (now < wary_until_us_) {
      const timespec rest{.tv_nsec = 1000 * rest_us};
      nanosleep(&rest, nullptr);
    }
    begin();
  }

 private:
  int64_t begun_us_ = 0, worked_us_ = 0, wary_until_us_ = 0;
};

constexpr int number_bits = 20;
constexpr uint64_t number_mask = (1 << number_bits) - 1;

constexpr uint64_t ticket(uint32_t phase, uint64_t chunks, uint64_t next) {
  return (uint64_t{phase & 0xffffff} << (2 * number_bits)) | (chunks << number_bits) | next;
}
constexpr uint64_t chunks_of(uint64_t ticket) { return (ticket >> number_bits) & number_mask; }
constexpr uint64_t next_of(uint64_t ticket) { return ticket & number_mask; }

// Returns whether it slept.
template <typename Word, typename Value>
bool wait_while(const Word& word, Value value) {
  for (int spin = 0; spin < spins_max; spin++) {
    if (word.load(std::memory_order_acquire) != value) return false;
    relax();
  }
  word.wait(value, std::memory_order_acquire);
  return true;
}

}  // namespace

Team::Team(int threads) {
  assert(threads >= 1);
  workers_.reserve(threads - 1);
  for (int rank = 1; rank < threads; rank++) workers_.emplace_back([this, rank] { follow(rank); });
}

Team::~Team() {
  stopping_ = true;
  phase_.fetch_add(1);
  phase_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::lead(const Work& work) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed) + 1;
  const int32_t chunks = static_cast<int32_t>((work.count + work.chunk - 1) / work.chunk);
  work_ = work;
  chunks_done_.store(0, std::memory_order_relaxed);
  tickets_.store(ticket(phase, static_cast<uint64_t>(chunks), 0), std::memory_order_release);
  phase_.store(phase, std::memory_order_release);
  phase_.notify_all();
  while (take_chunk(0)) continue;
  for (int32_t done = chunks_done_.load(std::memory_order_acquire); done != chunks; done = chunks_done_.load(std::memory_order_acquire))
    wait_while(chunks_done_, done);
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Team::follow(int rank) {
  for (Stint stint;;) {
    const uint32_t seen = phase_.load(std::memory_order_acquire);
    if (stopping_) return;
    while (take_chunk(rank)) stint.rest_if_contended();
    // Time that was slept for want of work was taken by nobody.
    if (wait_while(phase_, seen)) stint.begin();
  }
}

bool Team::take_chunk(int rank) {
  // Looked at before it is taken from: numbers past the last chunk would run into the next field.
  const uint64_t peeked = tickets_.load(std::memory_order_acquire);
  if (next_of(peeked) >= chunks_of(peeked)) return false;
  const uint64_t taken = tickets_.fetch_add(1, std::memory_order_acq_rel);
  if (next_of(taken) >= chunks_of(taken)) return false;
  const Work& work = work_;
  const int64_t begin = static_cast<int64_t>(next_of(taken)) * work.chunk;
  try {
    work.call(work.body, begin, std::min(begin + work.chunk, work.count), rank);
  } catch (...) {
    if (!failed_.exchange(true)) failure_ = std::current_exception();
  }
  const int32_t done = chunks_done_.fetch_add(1, std::memory_order_acq_rel) + 1;
  if (done == static_cast<int32_t>(chunks_of(taken))) chunks_done_.notify_one();
  return true;
}

}  // namespace millrace
