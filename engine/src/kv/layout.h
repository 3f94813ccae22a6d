// How keys and values lie in memory. A page holds T tokens of all layers; T is a multiple of 16 and the page a whole number of
// granules, the fewest that pad at most 4%. A slot is a range of virtual addresses whose pages follow one another, so an address is
//
//     slot base + (position / T) * page bytes + offset(layer, key or value, head)
//
// and attention needs no block table. Inside a page: [layer][k|v][kv head], then for keys [tile of 16 tokens][dim][16], so that one
// load brings one dimension of 16 tokens, and for values [token][dim].
#pragma once

#include <cstdint>

namespace millrace {

constexpr int tile_tokens = 16;

struct KvLayout {
  int layers = 0, kv_heads = 0, head_dim = 0;
  int element_bytes = 2;      // 2: float16, 4: float32
  int page_tokens = 0;        // T
  int64_t page_bytes = 0;     // a multiple of granule_bytes
  int64_t granule_bytes = 0;

  int64_t head_bytes() const { return int64_t{page_tokens} * head_dim * element_bytes; }
  int64_t token_bytes() const { return int64_t{2} * layers * kv_heads * head_dim * element_bytes; }
  // Where a head's keys (value = false) or values begin, from the page's first byte.
  int64_t offset(int layer, bool value, int head) const { return ((int64_t{layer} * 2 + (value ? 1 : 0)) * kv_heads + head) * head_bytes(); }
  int pages_for(int64_t tokens) const { return static_cast<int>((tokens + page_tokens - 1) / page_tokens); }
};

constexpr double page_padding_max = 0.04;

inline KvLayout plan_pages(int layers, int kv_heads, int head_dim, int element_bytes, int64_t granule_bytes) {
  KvLayout layout{layers, kv_heads, head_dim, element_bytes, 0, 0, granule_bytes};
  do {
    layout.page_tokens += tile_tokens;
    const int64_t used = layout.page_tokens * layout.token_bytes();
    layout.page_bytes = (used + granule_bytes - 1) / granule_bytes * granule_bytes;
  } while (static_cast<double>(layout.page_bytes) * (1 - page_padding_max) > static_cast<double>(layout.page_tokens * layout.token_bytes()));
  return layout;
}

}  // namespace millrace
