// A team of threads that runs one program together: every member executes the same function, phases are divided by barriers, and
// within a phase members take chunks of work from a shared counter, so that a member whose core was taken away does less.
//
// A member that waits spins briefly, for the case that all cores are ours, and then sleeps in the kernel: a team that only spins
// keeps the core from the very member it waits for.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace millrace {

class Team;

// One member's view of the team while a program runs.
class Member {
 public:
  int rank() const { return rank_; }
  int size() const;

  // Calls body(begin, end) for chunks that together cover [0, count) once, spread over the team; returns when all are done.
  template <typename Body>
  void parallel(int64_t count, int64_t chunk, const Body& body) {
    std::atomic<int64_t>& next = begin_phase();
    for (;;) {
      const int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) break;
      body(begin, begin + chunk < count ? begin + chunk : count);
    }
    barrier();
  }

  // Nobody passes before all have come.
  void barrier();

 private:
  friend class Team;
  Member(Team& team, int rank) : team_(team), rank_(rank) {}
  std::atomic<int64_t>& begin_phase();

  Team& team_;
  const int rank_;
  uint64_t phase_ = 0;
};

class Team {
 public:
  using Program = std::function<void(Member&)>;

  // `threads` counts the caller of run(), so threads - 1 are started.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs `program` on all members, the caller as rank 0; returns when all have finished. One caller at a time.
  void run(const Program& program);

 private:
  friend class Member;
  void work(int rank);
  void wait_while(const std::atomic<uint32_t>& word, uint32_t value) const;

  std::vector<std::thread> workers_;
  const Program* program_ = nullptr;
  std::atomic<uint32_t> generation_{0};  // grows by one a run; workers wait on it
  std::atomic<bool> stopping_{false};

  // The barrier: who comes last opens it by turning the epoch over.
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> epoch_{0};

  // Work counters, used in turn. Rank 0 clears the one after next while nobody can be using it.
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };
  Counter counters_[3];
};

inline int Member::size() const { return team_.size(); }

}  // namespace millrace
