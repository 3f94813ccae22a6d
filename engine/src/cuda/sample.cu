// The second kernel of sampling: chooses each sample's token. Greedy: the likeliest of what the slices found. Otherwise one draw among the
// candidates that top-k, top-p and min-p leave, each weighing exp((logit - highest) / temperature).
//
// logits or adjusted: [samples][vocabulary] float32. Grid: clusters of 8 blocks, each of which takes every so many-th sample; a sample's
// weights lie in the cluster's shared memory, a 128th in each warp's segment, and every pass after the first goes there.
// The draw walks the candidates in the order of their ids, the processor's by falling weight: any order that is fixed is as good.
// Bytes: vocabulary * 4 read for each sample that is not greedy. Reference: sample/sampler.cpp.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "../sample/random.h"
#include "sample_logprobs.cuh"
#include "sample_select.cuh"

namespace millrace {
namespace {

constexpr int clusters_max = 32;  // about two blocks on each multiprocessor

// Where the drawn candidate is: `left` of the mass of the segment's candidates goes before it, of which `ties` of the least weight stay.
struct Place {
  int segment;
  uint32_t ties;
  Mass left;
};

struct DrawRoom {
  SelectRoom select;
  Place place;
  int token;
  Key merged[step_logprobs_max];
};

// The likeliest of a sample's tokens, for every thread.
__device__ Key likeliest(const SliceResults& slices, int count) {
  Key best = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < count; i += 32) best = max(best, slices.best[i]);
  return warp_greatest(best);
}

// What top-k, top-p and min-p leave of the candidates.
__device__ Cut cut_candidates(Candidates& candidates, const StepSample& sample) {
  Cut cut = {1, all_ties, 0};
  const float top_p = sample.top_p, min_p = sample.min_p;
  const int top_k = sample.top_k;
  const bool has_top_p = top_p < 1;
  if (has_top_p || top_k > 0) {
    const Sums& sums = candidates.room.first;
    candidates.sum(0, 0, has_top_p, candidates.room.first);
    Amount all = {0, 0};
    for (int i = Candidates::lane(); i < digit_values; i += 32) all = all + Amount{sums.count[i], sums.mass[i]};
    all = warp_total(all);
    cut.mass = all.mass;
    if (top_k > 0 && static_cast<uint32_t>(top_k) < all.count) cut = candidates.cut(false, static_cast<Mass>(top_k), has_top_p);
    if (has_top_p) {
      const double target = ceil(fmax(static_cast<double>(top_p), 0.0) * static_cast<double>(cut.mass));
      cut = candidates.cut(true, min(max(static_cast<Mass>(target), Mass{1}), cut.mass), true);
    }
  }
  // The first of the order weighs 1 and stays.
  const uint32_t floor = image_of(fminf(min_p, 1.0f));
  if (min_p > 0 && floor > cut.least) cut = {floor, all_ties, 0};
  return cut;
}

__device__ Amount amount_above(uint4 four, uint32_t least) {
  const uint32_t image[4] = {four.x, four.y, four.z, four.w};
  Amount amount = {0, 0};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (image[i] > least) amount.mass += mass_of(image[i]);
    if (image[i] == least) amount.count++;
  }
  return amount;
}

// The candidate of this lane's four at which the mass of those that stay passes `left`. `ties` may stay yet.
__device__ int pass_four(uint4 four, uint32_t least, uint32_t ties, Mass left) {
  const uint32_t image[4] = {four.x, four.y, four.z, four.w};
  int passed = -1;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const bool is_tie = image[i] == least;
    if (passed >= 0 || image[i] < least || (is_tie && ties == 0)) continue;
    if (is_tie) ties--;
    const Mass mass = mass_of(image[i]);
    if (left < mass)
      passed = i;
    else
      left -= mass;
  }
  return passed;
}

// The drawn token, by the warp whose segment it is in; in one lane, the others have -1.
__device__ int find_token(const Candidates& candidates, const Place& place, uint32_t least) {
  const int lane = Candidates::lane();
  const Mass tie = mass_of(least);
  Mass left = place.left;
  uint32_t ties = place.ties;
  int chosen = -1;
  // It goes on behind the chosen 128 tokens, so that their sums need not wait for one another.
#pragma unroll 2
  for (int at = candidates.begin; at < candidates.end; at += 128) {
    const Amount all = warp_total(amount_above(candidates.images_at(at + 4 * lane), least));
    const uint32_t stay = min(all.count, ties);
    const Mass mass = all.mass + stay * tie;
    if (chosen >= 0) continue;
    if (left < mass) {
      chosen = at;
    } else {
      left -= mass;
      ties -= stay;
    }
  }
  const uint4 four = candidates.images_at(chosen + 4 * lane);
  const Amount own = amount_above(four, least);
  const uint32_t before = warp_prefix({own.count, 0}).count - own.count;
  ties = before < ties ? ties - before : 0u;
  const Mass mass = own.mass + min(own.count, ties) * tie, upto = warp_prefix({0, mass}).mass;
  if (left < upto - mass || left >= upto) return -1;
  return candidates.first + chosen + 4 * lane + pass_four(four, least, ties, left - (upto - mass));
}

// Finds the segment of the drawn candidate, in every block alike, from each segment's mass above the cut and its ties. One warp.
__device__ Place find_segment(const Candidates& candidates, Told& told, const Cut& cut, double uniform) {
  constexpr int each = segments / 32;
  const auto cluster = cooperative_groups::this_cluster();
  const int lane = Candidates::lane();
  Amount amount[each], own = {0, 0};
#pragma unroll
  for (int i = 0; i < each; i++) {
    const int segment = lane * each + i, at = segment % draw_warps;
    const Told& theirs = *cluster.map_shared_rank(&told, segment / draw_warps);
    amount[i] = {theirs.count[at], (static_cast<Mass>(theirs.high[at]) << 32) + theirs.low[at]};
    own = own + amount[i];
  }
  const Mass tie = mass_of(cut.least);
  uint32_t before = warp_prefix(own).count - own.count, ties[each];
  own.mass = 0;
#pragma unroll
  for (int i = 0; i < each; i++) {
    ties[i] = before < cut.ties ? min(amount[i].count, cut.ties - before) : 0u;
    before += amount[i].count;
    amount[i].mass += ties[i] * tie;
    own.mass += amount[i].mass;
  }
  const Mass upto = warp_prefix(own).mass, total = __shfl_sync(all_lanes, upto, 31);
  const Mass target = min(static_cast<Mass>(uniform * static_cast<double>(total)), total - 1);
  Place place = {-1, 0, 0};
  Mass passed = upto - own.mass;
#pragma unroll
  for (int i = 0; i < each; i++) {
    if (passed <= target && target < passed + amount[i].mass) place = {lane * each + i, ties[i], target - passed};
    passed += amount[i].mass;
  }
  return place;
}

// The drawn token, in the block that holds it; -1 in the others. By all threads of the cluster.
__device__ int draw(Candidates& candidates, DrawRoom& room, const Cut& cut, double uniform) {
  const int lane = Candidates::lane(), warp = Candidates::warp();
  const auto cluster = cooperative_groups::this_cluster();
  Amount amount = {0, 0};
  for (int at = candidates.begin; at < candidates.end; at += 128) amount = amount + amount_above(candidates.images_at(at + 4 * lane), cut.least);
  amount = warp_total(amount);
  Told& told = candidates.mine();
  if (lane == 0) told.count[warp] = amount.count, told.low[warp] = static_cast<uint32_t>(amount.mass), told.high[warp] = static_cast<uint32_t>(amount.mass >> 32);
  cluster.sync();
  candidates.turn++;
  if (warp == 0) {
    const Place place = find_segment(candidates, told, cut, uniform);
    if (place.segment >= 0) room.place = place;
  }
  __syncthreads();
  const Place place = room.place;
  if (place.segment / draw_warps != static_cast<int>(cluster.block_rank())) return -1;
  if (place.segment % draw_warps == warp) {
    const int token = find_token(candidates, place, cut.least);
    if (token >= 0) room.token = token;
  }
  __syncthreads();
  return room.token;
}

__global__ void __cluster_dims__(draw_blocks) __launch_bounds__(draw_threads) draw_kernel(StepView step, SampleTask task) {
  extern __shared__ __align__(16) uint8_t dynamic[];  // images while a token is drawn, lists of keys while it is told
  __shared__ DrawRoom room;
  let_next_begin();
  wait_for_previous();
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), share = block_tokens(task.vocabulary), segment = segment_tokens(task.vocabulary);
  Candidates candidates{room.select, reinterpret_cast<uint32_t*>(dynamic), rank * share, Candidates::warp() * segment, (Candidates::warp() + 1) * segment};
  const int samples = min(step.counts->samples, step.samples_max), clusters = static_cast<int>(gridDim.x) / draw_blocks;
  for (int s = static_cast<int>(blockIdx.x) / draw_blocks; s < samples; s += clusters) {
    const StepSample& sample = step.samples[s];
    const int slot = sample.slot, flags = sample.flags;
    if (slot < 0) continue;
    const SliceResults slices = slice_results(task, s);
    const Key best = likeliest(slices, slices_of(task.vocabulary));
    const float* raw = task.logits + static_cast<int64_t>(s) * task.vocabulary;
    int token = -1;
    if (is_greedy(sample) || logit_of(best) == -INFINITY) {
      // One block of the cluster does it, the next sample's another.
      if (s / clusters % draw_blocks == rank) token = token_of(best);
    } else {
      const float* row = (flags & adjust_flags) != 0 ? task.adjusted + static_cast<int64_t>(s) * task.vocabulary : raw;
      __syncthreads();  // the lists that were told before are read
      candidates.load(row, task.vocabulary, logit_of(best), 1 / sample.temperature);
      const Cut cut = cut_candidates(candidates, sample);
      token = draw(candidates, room, cut, uniform(sample.seed, static_cast<uint64_t>(sample.position)));
    }
    if (token < 0) continue;
    if (threadIdx.x == 0) {
      task.results[s].token = token;
      task.last_tokens[slot] = token;
    }
    if ((flags & logprobs_flag) != 0) tell_logprobs(task, slices, raw, token, sample.logprobs, reinterpret_cast<Key*>(dynamic), room.merged, task.results[s]);
  }
  if (candidates.turn > 0) cluster.sync();  // what others still read stays
}

// The images of a block's share, or the lists of a sample's likeliest.
size_t draw_shared_bytes(int vocabulary) {
  return std::max(static_cast<size_t>(block_tokens(vocabulary)) * sizeof(uint32_t), static_cast<size_t>(slices_of(vocabulary)) * step_logprobs_max * sizeof(Key));
}

}  // namespace

size_t sample_scratch_bytes(int samples_max, int vocabulary) {
  if (vocabulary > sample_vocabulary_max)
    throw std::invalid_argument("a vocabulary of " + std::to_string(vocabulary) + " tokens: the GPU samples from " + std::to_string(sample_vocabulary_max) + " at most");
  return static_cast<size_t>(samples_max) * slice_results_bytes(vocabulary);
}

void sample(cudaStream_t stream, const StepView& step, const SampleTask& task) {
  if (step.samples_max == 0) return;
  adjust(stream, step, task);
  const size_t bytes = draw_shared_bytes(task.vocabulary);
  allow_shared(draw_kernel, bytes);
  launch(stream, static_cast<unsigned>(draw_blocks * std::min(step.samples_max, clusters_max)), draw_threads, bytes, draw_kernel, step, task);
}

}  // namespace millrace
