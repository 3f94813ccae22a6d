// A crowd: hundreds of requests at once through the engine's public face, some of which are cancelled wherever they stand. Moments are
// counted in events and not in time, so that a slow machine meets the same ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"
#include "random.h"
#include "recorder.h"

namespace millrace::test {

struct Member {
  enum class Cancel {
    never,
    submitted,  // at once, by the thread that submitted it
    queued,     // when it is told its first place
    started,    // when it is told that its prompt is begun
    token,      // when it has `count` tokens
    elsewhere,  // by another thread, when the whole crowd was told `count` events, places aside
  };

  Request request;
  Cancel cancel = Cancel::never;
  uint32_t count = 0;
};

struct CrowdShape {
  int answered = 500, cancelled = 200;
  int vocabulary = 0;
  int prompt_tokens_max = 40;
  int tokens_min = 10, tokens_max = 50;  // of an answer
  int shared_tokens = 350;  // of a prefix that some prompts begin with; others share an eighth of it
  int long_tokens = 700;    // of a prompt that takes more than one step; some of those that are cancelled have one
};

// Requests 1 to answered + cancelled in random order: of all classes evenly, with every sampling option, none in a hurry.
std::vector<Member> make_crowd(const CrowdShape& shape, Random& random);

// The same requests in another order, without a cancellation.
std::vector<Member> calm(std::vector<Member> crowd, Random& random);

struct CrowdRun {
  std::vector<Told> told;  // by request; of those that were not in the crowd, nothing
  EngineStats stats;       // when all had ended
  int running_most = 0;    // in slots, as the steps' statistics have it
};

// Submits the crowd from several threads, cancels as it says, and returns when each has been told its end.
CrowdRun run_crowd(Engine& engine, Recorder& recorder, const std::vector<Member>& crowd, int submitters);

}  // namespace millrace::test
