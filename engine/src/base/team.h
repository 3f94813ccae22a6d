// A team of threads for one leader: the leader names a piece of work, all take chunks of it, and the leader goes on when every chunk is
// done. Chunks and not members are waited for, so that a member whose core was taken away holds up nobody unless it holds a chunk.
//
// Who waits spins briefly, for the case that all cores are ours, and then sleeps in the kernel: a team that only spins keeps the core
// from the very member it waits for.
#pragma once

#include <atomic>
#include <cassert>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace millrace {

class Team {
 public:
  // `threads` counts the leader, whoever calls parallel(), so threads - 1 are started.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, rank) for chunks that together cover [0, count) once; returns when all are done. The leader has rank 0.
  // One leader at a time; bodies must not call it. The first exception of a body is thrown here, once all others have ended.
  template <typename Body>
  void parallel(int64_t count, int64_t chunk, const Body& body) {
    if (count <= chunk || workers_.empty()) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    // Chunks are numbered in 20 bits, with room for those who ask after the last one.
    const int64_t chunks_wanted = (count + chunk - 1) / chunk;
    const int64_t each = chunks_wanted > chunks_max ? (count + chunks_max - 1) / chunks_max : chunk;
    lead({&body, [](const void* erased, int64_t begin, int64_t end, int rank) { (*static_cast<const Body*>(erased))(begin, end, rank); }, count, each});
  }

 private:
  struct Work {
    const void* body = nullptr;
    void (*call)(const void* body, int64_t begin, int64_t end, int rank) = nullptr;
    int64_t count = 0, chunk = 0;
  };
  static constexpr int64_t chunks_max = 1 << 19;

  void lead(const Work& work);
  void follow(int rank);
  bool take_chunk(int rank);

  std::vector<std::thread> workers_;

  // Phase, chunks and the next chunk in one word: who takes a number learns with it which work it belongs to, and as long as that
  // chunk is not done the work stays where it is. Phases are counted in 24 bits and may wrap: nobody compares but for change.
  alignas(64) std::atomic<uint64_t> tickets_{0};
  alignas(64) std::atomic<int32_t> chunks_done_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // what sleepers wait on
  Work work_;                                   // of the phase; changes only when all its chunks are done
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;  // of the work in hand; whoever sets failed_ writes it, before his chunk counts as done
};

}  // namespace millrace
