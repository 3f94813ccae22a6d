// A machine with a virtual clock for tests of the schedule: plays requests through it as the engine would, and checks at every step what
// must hold whatever happens.
#pragma once

#include <vector>

#include "schedule/schedule.h"
#include "support/random.h"
#include "support/test.h"

namespace millrace::test {

struct Sent {
  Submission asked;
  int length = 0;  // of its answer; the schedule does not know
  int computed = 0, sampled = 0, slot = -1;
  int64_t submitted_us = 0, first_us = 0, ended_us = 0;
  Decision decision;
  bool is_live = false, is_started = false, is_decoding = false, is_held = false;
  bool is_parked = false;  // held, and without its slot: it neither runs nor waits
  int parkings = 0;
};

// What goes on in a machine beside what the schedule is told.
struct Disturbances {
  double noise = 0.1;              // relative, of a step's time
  double stalls = 0;               // chance that a step takes stall_us more
  int64_t stall_us = 20'000;
  double slot_refusals = 0;        // chance that no slot is given although one is idle
  double lost_rows = 0;            // chance that a planned row's request ends before its step is run
};

struct Played {
  ScheduleLimits limits;
  Disturbances disturbances;
  Random random;
  std::vector<int> slot_of;      // request + 1 of who has each slot; 0: idle
  std::vector<int> idle_slots;
  Schedule schedule;
  std::vector<Sent> sent;        // by request
  std::vector<uint32_t> running, started;
  int64_t now_us = 1;
  double token_us = 10;          // what a position costs
  double slowness = 1;           // of the machine
  int live = 0, pages_taken = 0, held = 0;
  bool is_refused = false;       // a slot, in the last step
  uint64_t tokens = 0, parked = 0;
  int step_tokens = 0;           // positions that the last step computed
  bool finds_prefixes = false;   // of a length that the dice say

  Played(const ScheduleLimits& given, uint64_t state);

  // Returns the request's number.
  uint32_t submit(Submission asked, int length);
  void remove(uint32_t request, bool is_ended);
  void hold(uint32_t request, bool is_held);
  // One step; returns whether there was anything to do.
  bool step();
  // Steps until all have ended, undisturbed and with nobody held; what is left then would be a leak.
  void drain();

 private:
  Taken take_slot(uint32_t request);
  void leave_slot(int slot);
  int pages(const Submission& asked) const;
  StepLoad check(const std::vector<Row>& rows);
  void lose_rows(std::vector<Row>& rows);
  int64_t time_of(const StepLoad& load);
};

}  // namespace millrace::test
