#include "layout.h"

#include <algorithm>

namespace millrace {
namespace {

// Whether pages of this size suit a group; then it has its page_tokens.
bool fit(KvLayout& group, int64_t page_bytes) {
  group.page_bytes = page_bytes;
  group.page_tokens = static_cast<int>(page_bytes / group.token_bytes()) / tile_tokens * tile_tokens;
  const auto used = static_cast<double>(group.page_tokens * group.token_bytes());
  return used >= static_cast<double>(page_bytes) * (1 - page_padding_max);
}

// One window's layers as a group that pages of this size suit, or where a GPU keeps 8 bits as two, of which the first has most of them; none: they suit neither.
std::vector<KvLayout> divide(KvLayout whole, int64_t page_bytes) {
  if (fit(whole, page_bytes)) return {whole};
  if (whole.element != KvElement::e4m3) return {};
  KvLayout first = whole, second = whole;
  for (first.layers--, second.layers = 1; first.layers >= second.layers; first.layers--, second.layers++)
    if (fit(first, page_bytes) && fit(second, page_bytes)) return {first, second};
  return {};
}

// All windows' groups, those of one window behind each other; none: some suit pages of this size not.
std::vector<KvLayout> divide(const std::vector<KvLayout>& wholes, int64_t page_bytes) {
  std::vector<KvLayout> groups;
  for (const KvLayout& whole : wholes) {
    const std::vector<KvLayout> parts = divide(whole, page_bytes);
    if (parts.empty()) return {};
    groups.insert(groups.end(), parts.begin(), parts.end());
  }
  return groups;
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
  std::vector<KvLayout> wholes;
  for (const int window : kinds) {
    const auto layers = static_cast<int>(std::count(windows.begin(), windows.end(), window));
    wholes.push_back({.layers = layers, .kv_heads = kv_heads, .head_dim = head_dim, .element = element, .granule_bytes = granule_bytes, .window = window});
  }
  KvPlan plan;
  // The larger the page, the less a tile more or less matters: 25 tiles of the largest group suit all.
  for (int64_t page_bytes = granule_bytes; plan.groups.empty(); page_bytes += granule_bytes) plan.groups = divide(wholes, page_bytes);
  std::vector<int> placed(plan.groups.size());  // layers of each group
  for (const int window : windows) {
    size_t group = 0;
    while (plan.groups[group].window != window || placed[group] == plan.groups[group].layers) group++;
    plan.layers.push_back({static_cast<int>(group), placed[group]++});
  }
  return plan;
}

}  // namespace millrace
