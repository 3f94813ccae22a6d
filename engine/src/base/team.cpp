#include "team.h"

#include <cassert>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace millrace {
namespace {

// About 20 us: longer than a phase's imbalance, shorter than a scheduler's slice.
constexpr int spins_max = 4000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

Team::Team(int threads) {
  assert(threads >= 1);
  workers_.reserve(threads - 1);
  for (int rank = 1; rank < threads; rank++) workers_.emplace_back([this, rank] { work(rank); });
}

Team::~Team() {
  stopping_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::run(const Program& program) {
  for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
  program_ = &program;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  Member self(*this, 0);
  program(self);
  self.barrier();
}

void Team::work(int rank) {
  uint32_t seen = 0;
  for (;;) {
    wait_while(generation_, seen);
    seen++;
    if (stopping_) return;
    Member self(*this, rank);
    (*program_)(self);
    self.barrier();
  }
}

void Team::wait_while(const std::atomic<uint32_t>& word, uint32_t value) const {
  for (int spin = 0; spin < spins_max; spin++) {
    if (word.load(std::memory_order_acquire) != value) return;
    relax();
  }
  while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
}

std::atomic<int64_t>& Member::begin_phase() {
  // The counter of the next phase was last used two phases ago, and everybody has left that one.
  if (rank_ == 0) team_.counters_[(phase_ + 1) % 3].next.store(0, std::memory_order_relaxed);
  return team_.counters_[phase_++ % 3].next;
}

void Member::barrier() {
  if (team_.size() == 1) return;
  const uint32_t epoch = team_.epoch_.load(std::memory_order_relaxed);
  if (team_.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == team_.size()) {
    team_.arrived_.store(0, std::memory_order_relaxed);
    team_.epoch_.fetch_add(1, std::memory_order_release);
    team_.epoch_.notify_all();
  } else {
    team_.wait_while(team_.epoch_, epoch);
  }
}

}  // namespace millrace
