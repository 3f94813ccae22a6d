// Attention of up to six queries that share a KV head, over lanes L: for each chunk of 64 positions scores, one running softmax, values.
// Keys lie 16 tokens abreast, so a lane is a token and no score is added across lanes; each key and value is read and widened once
// for all queries. Masked positions weigh exactly 0, so nothing behind a query's own position can touch its bits.
#pragma once

#include <algorithm>
#include <limits>

#include "../kernels.h"
#include "math.h"

namespace millrace {
namespace {

// Where a page of the sequence lies. The benchmark of block tables puts its own in this one's place.
struct PagesInARow {
  static const uint8_t* page(const AttendTask& task, int index) { return task.base + index * task.layout->page_bytes; }
};

template <typename L, typename Element, typename Pages = PagesInARow>
struct Attention {
  using F = typename L::F;
  static constexpr int parts = tile_tokens / L::width;
  // 8-bit elements have a scale a token: keys' go to the scores, values' to the weights.
  static constexpr bool scaled = sizeof(Element) == 1;

  static F load(const float* from) { return L::load(from); }
  static F load(const uint16_t* from) { return L::load_half(from); }
  static F load(const int8_t* from) { return L::load_bytes(from); }

  // The tile of 16 tokens that begins at `position`, of keys or values.
  static const Element* tile(const AttendTask& task, int position, bool value) {
    const KvLayout& layout = *task.layout;
    const uint8_t* page = Pages::page(task, position / layout.page_tokens);
    return reinterpret_cast<const Element*>(page + layout.offset(task.layer, value, task.kv_head) +
                                            position % layout.page_tokens / tile_tokens * layout.tile_bytes());
  }
  static const uint16_t* scales(const Element* tile, int head_dim) { return reinterpret_cast<const uint16_t*>(tile + tile_tokens * head_dim); }

  template <int N>
  static void scores(const AttendTask& task, int begin, int first, float (*out)[chunk_tokens]) {
    const int head_dim = task.layout->head_dim;
    const Element* keys = tile(task, begin + first, false);
    F acc[N][parts];
    for (int n = 0; n < N; n++)
      for (int part = 0; part < parts; part++) acc[n][part] = L::zero();
    for (int dim = 0; dim < head_dim; dim++)
      for (int part = 0; part < parts; part++) {
        const F key = load(keys + dim * tile_tokens + part * L::width);
        for (int n = 0; n < N; n++) acc[n][part] = L::fma(L::all(task.queries[n][dim]), key, acc[n][part]);
      }
    for (int n = 0; n < N; n++)
      for (int part = 0; part < parts; part++) {
        if constexpr (scaled) acc[n][part] = L::mul(acc[n][part], L::load_half(scales(keys, head_dim) + part * L::width));
        if (task.soft_cap != 0) acc[n][part] = capped<L>(acc[n][part], task.soft_cap);
        L::store(out[n] + first + part * L::width, acc[n][part]);
      }
  }

  // Turns a chunk's scores, of which the query sees [from, to), into weights against the running maximum, and rescales what was
  // summed before.
  static void soften(float* scores, int from, int to, float* partial, int head_dim) {
    for (int t = 0; t < from; t++) scores[t] = -std::numeric_limits<float>::infinity();
    for (int t = to; t < chunk_tokens; t++) scores[t] = -std::numeric_limits<float>::infinity();
    float largest = partial[0];
    for (int t = 0; t < chunk_tokens; t += 16) largest = std::max(largest, max_of_16(scores + t));
    const F bound = L::all(largest);
    alignas(64) float lanes[16] = {};
    for (int t = 0; t < chunk_tokens; t += 16)
      for (int part = 0; part < parts; part++) {
        const F weight = exponential<L>(L::sub(L::load(scores + t + part * L::width), bound));
        L::store(scores + t + part * L::width, weight);
        L::store(lanes + part * L::width, L::add(L::load(lanes + part * L::width), weight));
      }
    alignas(64) float keep[16];
    L::store(keep, exponential<L>(L::all(partial[0] - largest)));
    partial[0] = largest;
    partial[1] = partial[1] * keep[0] + sum_of_16(lanes);
    for (int dim = 0; dim < head_dim; dim += L::width)
      L::store(partial + 2 + dim, L::mul(L::load(partial + 2 + dim), L::all(keep[0])));
  }

  // Multiplies each token's weights by its values' scale.
  template <int N>
  static void scale(const AttendTask& task, int begin, int unseen, int seen, float (*weights)[chunk_tokens]) {
    for (int first = unseen; first < seen; first += tile_tokens) {
      const uint16_t* of = scales(tile(task, begin + first, true), task.layout->head_dim);
      for (int part = 0; part < parts; part++)
        for (int n = 0; n < N; n++) {
          float* own = weights[n] + first + part * L::width;
          L::store(own, L::mul(L::load(own), L::load_half(of + part * L::width)));
        }
    }
  }

  template <int N>
  static void values(const AttendTask& task, int begin, int unseen, int seen, const float (*weights)[chunk_tokens]) {
    const int head_dim = task.layout->head_dim;
    for (int dim = 0; dim < head_dim; dim += tile_tokens) {
      F acc[N][parts];
      for (int n = 0; n < N; n++)
        for (int part = 0; part < parts; part++) acc[n][part] = L::load(task.partial[n] + 2 + dim + part * L::width);
      for (int first = unseen; first < seen; first += tile_tokens) {
        const Element* rows = tile(task, begin + first, true) + dim;
        const int count = std::min(tile_tokens, seen - first);
        for (int t = 0; t < count; t++)
          for (int part = 0; part < parts; part++) {
            const F value = load(rows + int64_t{t} * head_dim + part * L::width);
            for (int n = 0; n < N; n++) acc[n][part] = L::fma(L::all(weights[n][first + t]), value, acc[n][part]);
          }
      }
      for (int n = 0; n < N; n++)
        for (int part = 0; part < parts; part++) L::store(task.partial[n] + 2 + dim + part * L::width, acc[n][part]);
    }
  }

  template <int N>
  static void attend(const AttendTask& task) {
    const int head_dim = task.layout->head_dim;
    int start = task.end, end = 0;
    for (int n = 0; n < N; n++) {
      start = std::min(start, std::max(task.begin, task.first[n]));
      end = std::max(end, std::min(task.end, task.visible[n]));
      task.partial[n][0] = -std::numeric_limits<float>::max();
      for (int i = 1; i < 2 + head_dim; i++) task.partial[n][i] = 0;
    }
    alignas(64) float weights[N][chunk_tokens];
    for (int begin = start / chunk_tokens * chunk_tokens; begin < end; begin += chunk_tokens) {
      // From the first tile that anybody sees: what lies before may not be in memory any more.
      const int unseen = std::max(0, start - begin) / tile_tokens * tile_tokens, seen = std::min(chunk_tokens, end - begin);
      for (int first = unseen; first < seen; first += tile_tokens) scores<N>(task, begin, first, weights);
      for (int n = 0; n < N; n++) {
        const int from = std::max(0, task.first[n] - begin), to = std::min(chunk_tokens, std::min(task.end, task.visible[n]) - begin);
        if (from < to)
          soften(weights[n], from, to, task.partial[n], head_dim);
        else
          for (float& weight : weights[n]) weight = 0;
      }
      if constexpr (scaled) scale<N>(task, begin, unseen, seen, weights);
      values<N>(task, begin, unseen, seen, weights);
    }
  }

  static void run(const AttendTask& task) {
    static_assert(queries_max == 6);
    switch (task.count) {
      case 1:
        return attend<1>(task);
      case 2:
        return attend<2>(task);
      case 3:
        return attend<3>(task);
      case 4:
        return attend<4>(task);
      case 5:
        return attend<5>(task);
      case 6:
        return attend<6>(task);
    }
  }
};

template <typename L>
void attend(const AttendTask& task) {
  switch (task.layout->element) {
    case KvElement::float32:
      return Attention<L, float>::run(task);
    case KvElement::float16:
      return Attention<L, uint16_t>::run(task);
    case KvElement::int8:
      return Attention<L, int8_t>::run(task);
    case KvElement::bfloat16:
    case KvElement::e4m3:
      break;  // a GPU's
  }
}

}  // namespace
}  // namespace millrace
