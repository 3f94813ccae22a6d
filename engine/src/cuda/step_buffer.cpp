#include "step_buffer.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace millrace {
namespace {

constexpr size_t list_alignment = 64;
constexpr size_t barred_max = 4096;  // of all samples together; most share one list
constexpr int tile_chunk_multiple = 128, tile_chunk_min = 256;

size_t aligned(size_t bytes) { return (bytes + list_alignment - 1) / list_alignment * list_alignment; }

template <typename Entry>
size_t bytes_of(int count) {
  return aligned(static_cast<size_t>(count) * sizeof(Entry));
}

}  // namespace

StepBuffer::Offsets StepBuffer::offsets_of(const StepRoom& room) {
  Offsets at = {};
  at.tokens = aligned(sizeof(StepCounts));
  at.samples = at.tokens + bytes_of<StepToken>(room.tokens);
  at.tiles = at.samples + bytes_of<StepSample>(room.samples);
  at.pieces = at.tiles + bytes_of<AttendTile>(room.tiles);
  at.end = at.pieces + bytes_of<AttendPiece>(room.pieces);
  return at;
}

StepBuffer::StepBuffer(const StepRoom& most, const StepShape& shape, int steps)
    : most_(most), shape_(shape), written_(static_cast<size_t>(steps)), device_(offsets_of(most).end), device_biases_(static_cast<size_t>(most.samples) * biases_max),
      device_barred_(barred_max) {
  for (Written& each : written_) each.lists = PinnedArray<uint8_t>(offsets_of(most).end);
}

StepRoom StepBuffer::room_for(const Plan& plan) const {
  StepRoom room{.tokens = static_cast<int>(plan.tokens.size()), .tile_chunk_tokens = tile_chunk_of(plan)};
  const int chunk_tokens = shape_.chunk_of(room.tokens), divided = room.tile_chunk_tokens;
  for (const Row& row : plan.rows) {
    room.samples += row.samples;
    if (row.count == 1 || shape_.tile_tokens == 0) {
      for (int i = 0; i < row.count; i++) room.pieces += (row.first + i) / chunk_tokens + 1;
      continue;
    }
    if (divided == 0) room.tiles += shape_.tiles_of(row.count);
    for (int i = 0; divided > 0 && i < row.count; i += shape_.tile_tokens) {
      const int count = std::min(shape_.tile_tokens, row.count - i), chunks = (row.first + i + count - 1) / divided + 1;
      room.tiles += chunks;
      room.tile_partials += count * chunks;
    }
  }
  return room;
}

// So long that all tiles' chunks together are about as many blocks as run at once; 0 where whole tiles are about enough, or their contexts short.
int StepBuffer::tile_chunk_of(const Plan& plan) const {
  int64_t tiles = 0, positions = 0, longest = 0;
  for (const Row& row : plan.rows) {
    if (row.count == 1 || shape_.tile_tokens == 0) continue;
    tiles += shape_.tiles_of(row.count);
    positions += int64_t{shape_.tiles_of(row.count)} * (row.first + row.count);
    longest = std::max<int64_t>(longest, row.first + row.count);
  }
  if (tiles * shape_.tile_blocks >= shape_.blocks) return 0;
  const int64_t chunk = std::max<int64_t>(positions * shape_.tile_blocks / shape_.blocks, tile_chunk_min);
  if (2 * chunk > longest) return 0;  // the second chunk would wait for a block as long as the first one takes
  return static_cast<int>((chunk + tile_chunk_multiple - 1) / tile_chunk_multiple * tile_chunk_multiple);
}

StepView StepBuffer::view(const StepRoom& room) const {
  const Offsets at = offsets_of(room);
  const auto list = [&]<typename Entry>(size_t offset, const Entry*) { return reinterpret_cast<const Entry*>(device_.get() + offset); };
  StepView view;
  view.counts = list(0, view.counts);
  view.tokens = list(at.tokens, view.tokens);
  view.pieces = list(at.pieces, view.pieces);
  view.tiles = list(at.tiles, view.tiles);
  view.samples = list(at.samples, view.samples);
  view.biases = device_biases_.get();
  view.barred = device_barred_.get();
  view.tokens_max = room.tokens;
  view.pieces_max = room.pieces;
  view.tiles_max = room.tiles;
  view.samples_max = room.samples;
  view.chunk_tokens = shape_.chunk_of(room.tokens);
  view.tile_chunk_tokens = room.tile_chunk_tokens;
  return view;
}

void StepBuffer::write(const Plan& plan, const StepRoom& room, cudaStream_t stream) {
  assert(room.tokens <= most_.tokens && room.pieces <= most_.pieces && room.tiles <= most_.tiles && room.samples <= most_.samples);
  assert(room.tile_partials <= shape_.tile_partials_max());
  const Offsets at = offsets_of(room);
  Written& to = written_[next_++ % written_.size()];
  uint8_t* host = to.lists.get();
  auto* tokens = reinterpret_cast<StepToken*>(host + at.tokens);
  auto* pieces = reinterpret_cast<AttendPiece*>(host + at.pieces);
  auto* tiles = reinterpret_cast<AttendTile*>(host + at.tiles);
  StepCounts counts;
  const int chunk_tokens = shape_.chunk_of(room.tokens), divided = room.tile_chunk_tokens;
  int partials = room.pieces;
  for (const Row& row : plan.rows) {
    const int first = counts.tokens;
    for (int i = 0; i < row.count; i++) tokens[counts.tokens++] = {plan.tokens[static_cast<size_t>(first + i)], row.first + i, row.slot, -1};
    if (row.count > 1 && shape_.tile_tokens > 0) {
      for (int i = 0; i < row.count; i += shape_.tile_tokens) {
        const int count = std::min(shape_.tile_tokens, row.count - i), chunks = divided == 0 ? 1 : (row.first + i + count - 1) / divided + 1;
        for (int chunk = 0; chunk < chunks; chunk++) tiles[counts.tiles++] = {first + i, count, chunk};
        for (int j = 0; divided > 0 && j < count; j++, partials += chunks) tokens[first + i + j].partial = partials;
      }
      continue;
    }
    for (int i = 0; i < row.count; i++) {
      const int begun = counts.pieces, chunks = (row.first + i) / chunk_tokens + 1;
      for (int chunk = 0; chunk < chunks; chunk++) pieces[counts.pieces++] = {first + i, chunk, begun, chunks};
    }
  }
  for (int i = counts.tokens; i < room.tokens; i++) tokens[i] = {};
  list_samples(plan, to);
  counts.samples = static_cast<int>(samples_.size());
  std::memcpy(host + at.samples, samples_.data(), samples_.size() * sizeof(StepSample));
  std::memcpy(host, &counts, sizeof(counts));
  const size_t used = at.pieces + static_cast<size_t>(counts.pieces) * sizeof(AttendPiece);
  check(cudaMemcpyAsync(device_.get(), host, used, cudaMemcpyHostToDevice, stream), "copying a step");
  if (!to.biases.empty())
    check(cudaMemcpyAsync(device_biases_.get(), to.biases.data(), to.biases.size() * sizeof(StepBias), cudaMemcpyHostToDevice, stream), "copying a step's biases");
  if (!to.barred.empty())
    check(cudaMemcpyAsync(device_barred_.get(), to.barred.data(), to.barred.size() * sizeof(int32_t), cudaMemcpyHostToDevice, stream), "copying a step's barred tokens");
}

void StepBuffer::write_samples(const std::vector<StepSample>& samples, const StepRoom& room, cudaStream_t stream) {
  // What was copied last may still be on its way.
  check(cudaStreamSynchronize(stream), "computing a step");
  uint8_t* host = written_[(next_ - 1) % written_.size()].lists.get();
  StepCounts counts;
  std::memcpy(&counts, host, sizeof(counts));
  counts.samples = static_cast<int>(samples.size());
  std::memcpy(host, &counts, sizeof(counts));
  const Offsets at = offsets_of(room);
  std::memcpy(host + at.samples, samples.data(), samples.size() * sizeof(StepSample));
  check(cudaMemcpyAsync(device_.get(), host, at.tiles, cudaMemcpyHostToDevice, stream), "copying a step");
}

void StepBuffer::list_samples(const Plan& plan, Written& to) {
  samples_.clear();
  to.biases.clear();
  to.barred.clear();
  int first = 0, masks = 0;
  for (const Row& row : plan.rows) {
    for (int i = row.count - row.samples; i < row.count; i++) {
      StepSample sample{.token = first + i, .slot = row.slot, .position = row.first + i + 1};
      if (!plan.samplers.empty()) {
        const Plan::Sampling& sampling = plan.samplers[samples_.size()];
        list_options(sample, sampling, to);
        if (sampling.sampler->mask() != nullptr) sample.flags |= mask_flag, sample.mask = masks++;
      }
      samples_.push_back(sample);
    }
    first += row.count;
  }
}

void StepBuffer::list_options(StepSample& sample, const Plan::Sampling& sampling, Written& to) {
  const Sampler& sampler = *sampling.sampler;
  const SamplingOptions& options = sampler.options();
  sample.temperature = options.temperature;
  sample.top_k = options.top_k;
  sample.top_p = options.top_p;
  sample.min_p = options.min_p;
  sample.seed = options.seed;
  sample.repetition_penalty = options.repetition_penalty;
  sample.presence_penalty = options.presence_penalty;
  sample.frequency_penalty = options.frequency_penalty;
  sample.generated_from = sampler.prompt_tokens();
  if (options.has_penalties()) sample.flags |= penalty_flag;
  if (options.logprobs >= 0) sample.flags |= logprobs_flag, sample.logprobs = options.logprobs;
  if (!options.bias.empty()) {
    sample.flags |= bias_flag;
    sample.bias_first = static_cast<int>(to.biases.size());
    sample.bias_count = static_cast<int>(options.bias.size());
    for (const TokenBias& each : options.bias) to.biases.push_back({each.token, each.bias});
  }
  if (const std::span<const int32_t> barred = sampler.barred(sampling.pending); !barred.empty()) {
    sample.flags |= barred_flag;
    // Requests of one model bar the same tokens.
    const auto found = std::search(to.barred.begin(), to.barred.end(), barred.begin(), barred.end());
    sample.barred_first = static_cast<int>(found - to.barred.begin());
    sample.barred_count = static_cast<int>(barred.size());
    if (found == to.barred.end()) to.barred.insert(to.barred.end(), barred.begin(), barred.end());
    if (to.barred.size() > barred_max) throw CudaError("a step bars more tokens than there is room for");
  }
}

}  // namespace millrace
