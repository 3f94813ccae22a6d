#include "team.h"

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

constexpr int number_bits = 20;
constexpr uint64_t number_mask = (1 << number_bits) - 1;

constexpr uint64_t ticket(uint32_t phase, uint64_t chunks, uint64_t next) {
  return (uint64_t{phase & 0xffffff} << (2 * number_bits)) | (chunks << number_bits) | next;
}
constexpr uint64_t chunks_of(uint64_t ticket) { return (ticket >> number_bits) & number_mask; }
constexpr uint64_t next_of(uint64_t ticket) { return ticket & number_mask; }

template <typename Word, typename Value>
void wait_while(const Word& word, Value value) {
  for (int spin = 0; spin < spins_max; spin++) {
    if (word.load(std::memory_order_acquire) != value) return;
    relax();
  }
  word.wait(value, std::memory_order_acquire);
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
  for (;;) {
    const uint32_t seen = phase_.load(std::memory_order_acquire);
    if (stopping_) return;
    while (take_chunk(rank)) continue;
    wait_while(phase_, seen);
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
