// A step's lists on their way to the device: written in pinned memory, copied in one piece. Where each list lies depends on the room that a
// step of its kind has, and not on the step, so that a captured graph finds them in the next one.
#pragma once

#include <vector>

#include "../model/backend.h"
#include "memory.h"
#include "step.h"

namespace millrace {

// How many of each a step may have.
struct StepRoom {
  int tokens = 0, pieces = 0, tiles = 0, samples = 0;
  int tile_chunk_tokens = 0;  // 0: tiles are not divided
  int tile_partials = 0;      // a token's and chunk's each, numbered behind the pieces
};

struct StepShape {
  int chunk_tokens = 0;  // of a piece,
  int few_tokens = 0, few_chunk_tokens = 0;  // or in steps of at most so many tokens
  int tile_tokens = 0;   // of a tile; 0: tokens of one row attend one by one
  int tile_blocks = 1;   // that a tile takes
  int blocks = 0;        // that run at once: contexts of tiles that make fewer are divided

  int chunk_of(int tokens) const { return tokens <= few_tokens ? few_chunk_tokens : chunk_tokens; }
  int tiles_of(int tokens) const { return (tokens + tile_tokens - 1) / tile_tokens; }
  // A step's divided tiles are no more than this, and so are its partial results.
  int divided_tiles_max() const { return tile_tokens == 0 ? 0 : 2 * (blocks / tile_blocks + 1); }
  int tile_partials_max() const { return divided_tiles_max() * tile_tokens; }
};

class StepBuffer {
 public:
  // `steps` may be on their way at once.
  StepBuffer(const StepRoom& most, const StepShape& shape, int steps);

  // What a plan needs.
  StepRoom room_for(const Plan& plan) const;
  // Writes the plan's lists for that room, and copies them in the stream. The step before the last `steps` must have been copied.
  void write(const Plan& plan, const StepRoom& room, cudaStream_t stream);
  StepView view(const StepRoom& room) const;

  // The samples of the step in hand, as they were copied; a plan without samplers has a token and a slot in each.
  const std::vector<StepSample>& samples() const { return samples_; }
  // Copies other samples in place of the step's.
  void write_samples(const std::vector<StepSample>& samples, const StepRoom& room, cudaStream_t stream);
  const StepRoom& most() const { return most_; }

 private:
  int tile_chunk_of(const Plan& plan) const;
  struct Offsets {
    size_t tokens, pieces, tiles, samples, end;
  };
  static Offsets offsets_of(const StepRoom& room);
  // One step's lists on the host: what is copied must stay as it is until the device has it.
  struct Written {
    PinnedArray<uint8_t> lists;
    std::vector<StepBias> biases;
    std::vector<int32_t> barred;
  };
  void list_samples(const Plan& plan, Written& to);
  void list_options(StepSample& sample, const Plan::Sampling& sampling, Written& to);

  const StepRoom most_;
  const StepShape shape_;
  std::vector<Written> written_;
  size_t next_ = 0;
  DeviceArray<uint8_t> device_;
  std::vector<StepSample> samples_;
  DeviceArray<StepBias> device_biases_;
  DeviceArray<int32_t> device_barred_;
};

}  // namespace millrace
