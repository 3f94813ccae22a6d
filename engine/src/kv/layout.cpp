#include "layout.h"

#include <algorithm>

namespace millrace {
namespace {

// Whether pages of this size suit every group; then they have their page_tokens.
bool fit(std::vector<KvLayout>& groups, int64_t page_bytes) {
  for (KvLayout& group : groups) {
    group.page_bytes = page_bytes;
    group.page_tokens = static_cast<int>(page_bytes / group.token_bytes()) / tile_tokens * tile_tokens;
    const auto used = static_cast<double>(group.page_tokens * group.token_bytes());
    if (used < static_cast<double>(page_bytes) * (1 - page_padding_max)) return false;
  }
  return true;
}

}  // namespace

int KvPlan::pages_a_range(int64_t tokens) const {
  int pages = 0;
  for (const KvLayout& group : groups) pages = std::max(pages, group.pages_for(tokens));
  return pages;
}

KvPlan plan_pages(std::span<const int> windows, int kv_heads, int head_dim, KvElement element, int64_t granule_bytes) {
  std::vector<int> kinds(windows.begin(), windows.end());
  const auto sees_more = [](int a, int b) { return b != 0 && (a == 0 || a > b); };
  std::sort(kinds.begin(), kinds.end(), sees_more);
  kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
  KvPlan plan;
  for (const int window : kinds)
    plan.groups.push_back({.kv_heads = kv_heads, .head_dim = head_dim, .element = element, .granule_bytes = granule_bytes, .window = window});
  for (const int window : windows) {
    const int group = static_cast<int>(std::find(kinds.begin(), kinds.end(), window) - kinds.begin());
    plan.layers.push_back({group, plan.groups[static_cast<size_t>(group)].layers++});
  }
  // The larger the page, the less a tile more or less matters: 25 tiles of the largest group suit all.
  int64_t page_bytes = granule_bytes;
  while (!fit(plan.groups, page_bytes)) page_bytes += granule_bytes;
  return plan;
}

}  // namespace millrace
