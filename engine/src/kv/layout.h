// How keys and values lie in memory. The layers that see one window form a group, which has a range of virtual addresses of its own in
// each slot, so that a window's pages can go while others stay. A page holds T tokens of all layers of its group; T is a multiple of 16.
// All groups have pages of one size, so that one pool serves them all: the fewest granules that pad none of them by more than 4%.
// The pages of a range follow one another, so an address is
//
//     base of (slot, group) + (position / T) * page bytes + offset(layer in its group, key or value, head)
//
// and attention needs no block table. Inside a page: [layer][k|v][kv head], then for values [token][dim], and for keys on a CPU
// [tile of 16 tokens][dim][16], so that one load brings one dimension of 16 tokens; on a GPU [token][dim], as its matrix units want them. A
// CPU's 8 bits are followed, tile by tile, by a float16 scale for each of the 16 tokens, since a token must be quantized by itself: what comes
// after it may not change its bits. A GPU's, E4M3, have their scales from the weights alone (cuda/kv_scales.cu) and none in a page: so 32 tokens of
// an 8B are 2 MiB, as much as a GPU's granule.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

constexpr int tile_tokens = 16;

// A CPU keeps the first three, a GPU the others.
enum class KvElement : uint8_t { float16, float32, int8, bfloat16, e4m3 };

constexpr int bytes_of(KvElement element) { return element == KvElement::int8 || element == KvElement::e4m3 ? 1 : element == KvElement::float32 ? 4 : 2; }
// One head's keys or values of 16 tokens.
constexpr int64_t tile_bytes_of(KvElement element, int head_dim) { return int64_t{tile_tokens} * (head_dim * bytes_of(element) + (element == KvElement::int8 ? 2 : 0)); }

// Of one group.
struct KvLayout {
  int layers = 0, kv_heads = 0, head_dim = 0;
  KvElement element = KvElement::float16;
  int page_tokens = 0;        // T
  int64_t page_bytes = 0;     // a multiple of granule_bytes, the same for all groups
  int64_t granule_bytes = 0;
  int window = 0;             // positions that its layers see, the token's own included; 0: all

  int64_t tile_bytes() const { return tile_bytes_of(element, head_dim); }
  int64_t head_bytes() const { return page_tokens / tile_tokens * tile_bytes(); }
  int64_t token_bytes() const { return int64_t{2} * layers * kv_heads * tile_bytes() / tile_tokens; }
  // Where a head's keys (value = false) or values begin, from the page's first byte; `layer` counts in the group.
  int64_t offset(int layer, bool value, int head) const { return ((int64_t{layer} * 2 + (value ? 1 : 0)) * kv_heads + head) * head_bytes(); }
  int pages_for(int64_t tokens) const { return static_cast<int>((tokens + page_tokens - 1) / page_tokens); }
};

constexpr double page_padding_max = 0.04;

// The groups of a model, those that see more first, and where each of its layers is.
struct KvPlan {
  struct Place {
    int group = 0, layer = 0;  // the layer counts in the group
  };
  std::vector<KvLayout> groups;
  std::vector<Place> layers;  // [layers of the model]

  int group_count() const { return static_cast<int>(groups.size()); }
  int64_t page_bytes() const { return groups[0].page_bytes; }
  // Of the longest range that so many tokens need.
  int pages_a_range(int64_t tokens) const;
};

// `windows` has each layer's. Windows of a context and more should be given as 0: they never free anything.
KvPlan plan_pages(std::span<const int> windows, int kv_heads, int head_dim, KvElement element, int64_t granule_bytes);

}  // namespace millrace
