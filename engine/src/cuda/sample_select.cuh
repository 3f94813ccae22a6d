// The candidates of one draw, spread over the blocks of a cluster, and where top-k and top-p cut their order (weight falling, then id
// rising). Weights are kept as images: integers that rise with them, 28 bits wide. A cut is found digit by digit, as in a radix sort: the
// cluster counts the candidates and sums their mass under each value of a digit, and goes on within the value in which the cut lies.
// Masses are integers, so that no sum depends on an order.
#pragma once

#include <cooperative_groups.h>

#include "sample.cuh"

namespace millrace {

constexpr int draw_blocks = 8, draw_threads = 512, draw_warps = draw_threads / 32, segments = draw_blocks * draw_warps;
static_assert(segments % 32 == 0);
constexpr int segment_multiple = 4;  // tokens: what a thread reads at once

// Of a warp, and of a block. Segments lie in the order of their tokens: block by block, warp by warp.
__host__ __device__ constexpr int segment_tokens(int vocabulary) {
  return (vocabulary + segments * segment_multiple - 1) / (segments * segment_multiple) * segment_multiple;
}
__host__ __device__ constexpr int block_tokens(int vocabulary) { return segment_tokens(vocabulary) * draw_warps; }

// The image of a weight in [2^-24, 1]: 1 for the least of them. 0: no candidate.
constexpr uint32_t least_weight_bits = 0x33800000;  // of 2^-24: beyond that of the likeliest a token's weight vanishes in the sum
constexpr uint32_t image_max = 0x3f800000 - least_weight_bits + 1;
__device__ inline uint32_t image_of(float weight) {
  // What is no number, as an impossible logit at an endless temperature, is none either.
  return weight >= 0x1p-24f ? min(__float_as_uint(weight) - least_weight_bits + 1, image_max) : 0u;
}
// The weight in units of 2^-44. Those of a whole vocabulary stay below 2^63.
using Mass = unsigned long long;
__device__ inline Mass mass_of(uint32_t image) {
  if (image == 0) return 0;
  const uint32_t bits = image - 1;
  return static_cast<Mass>((bits & 0x7fffffu) | 0x800000u) << (bits >> 23) >> 3;
}

// The digits of an image, the highest first: 8, 7, 7 and 6 bits.
constexpr int digits = 4, digit_values = 256;
__device__ constexpr int digit_shift(int digit) { return digit == 0 ? 20 : digit == 1 ? 13 : digit == 2 ? 6 : 0; }
static_assert(image_max >> 20 < digit_values);

// One block's candidates under each value of a digit, and what else blocks tell each other. Mass is low + 2^32 * high.
struct Told {
  uint32_t count[digit_values], low[digit_values], high[digit_values];
};
struct Amount {
  uint32_t count;
  Mass mass;
};
// The whole cluster's.
struct Sums {
  uint32_t count[digit_values];
  Mass mass[digit_values];
};
struct Found {
  uint32_t value;
  Amount above, within;
};
// What stays: images above `least`, and of those equal to it so many, of the lowest ids.
constexpr uint32_t all_ties = 0xffffffffu;
struct Cut {
  uint32_t least, ties;
  Mass mass;  // of all that stays
};

struct SelectRoom {
  Told told[2];  // while one is read by other blocks, the next is written
  Sums first, sums;  // of the first digit, which serves every cut, and of any other
  Found found;
};

__device__ inline Amount operator+(Amount a, Amount b) { return {a.count + b.count, a.mass + b.mass}; }
__device__ inline Amount warp_total(Amount each) {
  each.count = __reduce_add_sync(all_lanes, each.count);
  for (int distance = 16; distance > 0; distance /= 2) each.mass += __shfl_xor_sync(all_lanes, each.mass, distance);
  return each;
}
// Of the lanes up to this one, this one included.
__device__ inline Amount warp_prefix(Amount each) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t count = __shfl_up_sync(all_lanes, each.count, distance);
    const Mass mass = __shfl_up_sync(all_lanes, each.mass, distance);
    if (lane >= distance) each = each + Amount{count, mass};
  }
  return each;
}

// Every function is called by all threads of all blocks, which agree on its arguments. `turn` counts the exchanges: all blocks make the same.
struct Candidates {
  SelectRoom& room;
  uint32_t* images;  // [block_tokens], of this block; each thread reads what it wrote alone
  int first;         // token of this block
  int begin, end;    // of this warp's segment, within the block
  int turn = 0;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ Told& mine() { return room.told[turn % 2]; }

  // This lane's four of every 128 of the segment.
  __device__ uint4 images_at(int at) const { return at < end ? *reinterpret_cast<const uint4*>(images + at) : uint4{0, 0, 0, 0}; }

  __device__ void load(const float* row, int vocabulary, float highest, float inverse_temperature) {
#pragma unroll 4
    for (int at = begin + 4 * lane(); at < end; at += 128) {
      float quad[4];
      uint32_t image[4];
      load_quad(row, first + at, vocabulary, quad);
#pragma unroll
      for (int i = 0; i < 4; i++) image[i] = image_of(quad[i] == highest ? 1.0f : expf((quad[i] - highest) * inverse_temperature));
      *reinterpret_cast<uint4*>(images + at) = {image[0], image[1], image[2], image[3]};
    }
  }

  __device__ static void add_mass(Told& told, uint32_t value, Mass mass) {
    const auto low = static_cast<uint32_t>(mass);
    auto high = static_cast<uint32_t>(mass >> 32);
    if (atomicAdd(&told.low[value], low) + low < low) high++;  // the lower half ran over
    if (high != 0) atomicAdd(&told.high[value], high);
  }

  // Adds one candidate of each lane, if it has one, under the value of its digit. Where a whole warp meets at one value it adds as one: the
  // candidates of a flat distribution would queue up.
  __device__ static void add(Told& told, bool is_in, uint32_t value, uint32_t image, bool has_mass) {
    int is_same = 0;
    __match_all_sync(all_lanes, is_in ? value : digit_values, &is_same);
    if (is_same == 0) {
      if (!is_in) return;
      atomicAdd(&told.count[value], 1u);
      if (has_mass) add_mass(told, value, mass_of(image));
      return;
    }
    if (!is_in) return;
    Mass mass = 0;
    if (has_mass) {
      constexpr int half = 22;
      mass = mass_of(image);
      mass = (static_cast<Mass>(__reduce_add_sync(all_lanes, static_cast<uint32_t>(mass >> half))) << half) +
             __reduce_add_sync(all_lanes, static_cast<uint32_t>(mass) & ((1u << half) - 1));
    }
    if (lane() != 0) return;
    atomicAdd(&told.count[value], 32u);
    if (has_mass) add_mass(told, value, mass);
  }

  // The whole cluster's candidates whose digits before this one are `prefix`, under each value of this one.
  __device__ void sum(int digit, uint32_t prefix, bool has_mass, Sums& sums) {
    Told& told = mine();
    for (int i = static_cast<int>(threadIdx.x); i < digit_values; i += draw_threads) told.count[i] = told.low[i] = told.high[i] = 0;
    __syncthreads();
    const int shift = digit_shift(digit), above = digit == 0 ? 31 : digit_shift(digit - 1);
    for (int at = begin; at < end; at += 128) {
      const uint4 four = images_at(at + 4 * lane());
      const uint32_t image[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
        add(told, image[i] != 0 && image[i] >> above == prefix, (image[i] & ((1u << above) - 1)) >> shift, image[i], has_mass);
    }
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    turn++;
    for (int i = static_cast<int>(threadIdx.x); i < digit_values; i += draw_threads) {
      Amount amount = {0, 0};
#pragma unroll
      for (int block = 0; block < draw_blocks; block++) {
        const Told& theirs = *cluster.map_shared_rank(&told, block);
        amount = amount + Amount{theirs.count[i], (static_cast<Mass>(theirs.high[i]) << 32) + theirs.low[i]};
      }
      sums.count[i] = amount.count;
      sums.mass[i] = amount.mass;
    }
    __syncthreads();
  }

  // The value at which what is greater falls short of `target` and what is not less reaches it.
  __device__ Found find(const Sums& sums, bool by_mass, Mass target) {
    constexpr int each = digit_values / 32;
    __syncthreads();  // what was found before is read
    if (warp() == 0) {
      const int highest = digit_values - 1 - lane() * each;
      Amount own = {0, 0};
      for (int i = 0; i < each; i++) own = own + Amount{sums.count[highest - i], sums.mass[highest - i]};
      const Amount upto = warp_prefix(own);
      Amount above = {upto.count - own.count, upto.mass - own.mass};
      for (int i = 0; i < each; i++) {
        const Amount within = {sums.count[highest - i], sums.mass[highest - i]};
        const Mass before = by_mass ? above.mass : above.count, amount = by_mass ? within.mass : within.count;
        if (before < target && target <= before + amount) room.found = {static_cast<uint32_t>(highest - i), above, within};
        above = above + within;
      }
    }
    __syncthreads();
    return room.found;
  }

  // The shortest beginning of the order that has `target` candidates, or their mass. All together have as much; the first digit is summed.
  __device__ Cut cut(bool by_mass, Mass target, bool has_mass) {
    Amount above = {0, 0};
    uint32_t prefix = 0;
    for (int digit = 0;; digit++) {
      if (digit > 0) sum(digit, prefix, has_mass, room.sums);
      const Mass before = by_mass ? above.mass : above.count;
      const Found found = find(digit == 0 ? room.first : room.sums, by_mass, target - before);
      above = above + found.above;
      prefix = prefix << (digit == 0 ? 8 : digit_shift(digit - 1) - digit_shift(digit)) | found.value;
      const Mass left = target - (by_mass ? above.mass : above.count);
      // A value that is needed whole needs no more digits.
      if (found.within.count == 1 || (!by_mass && left == found.within.count)) return {max(prefix << digit_shift(digit), 1u), all_ties, above.mass + found.within.mass};
      if (digit < digits - 1) continue;
      const Mass tie = mass_of(prefix), ties = by_mass ? (left + tie - 1) / tie : left;
      return {prefix, static_cast<uint32_t>(ties), above.mass + ties * tie};
    }
  }
};

}  // namespace millrace
