#include "prefixes.h"

#include <algorithm>
#include <cassert>

namespace millrace {

Prefixes::Prefixes(int slots) : nodes_(1), ends_(static_cast<size_t>(slots)) {}

int Prefixes::add_node(int parent, std::span<const int32_t> edge) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<int>(nodes_.size()));
    nodes_.emplace_back();
  }
  const int node = unused_.back();
  unused_.pop_back();
  at(node) = {.parent = parent, .start = at(parent).end(), .edge = {edge.begin(), edge.end()}};
  at(parent).children[edge[0]] = node;
  tokens_ += static_cast<int64_t>(edge.size());
  return node;
}

void Prefixes::free_node(int node) {
  tokens_ -= static_cast<int64_t>(at(node).edge.size());
  at(node) = Node();
  unused_.push_back(node);
}

// The slot ends in the edge of `node` from now on.
void Prefixes::settle(int slot, int node) {
  End& end = ends_[static_cast<size_t>(slot)];
  if (end.node == node) return;
  std::erase(at(end.node).slots, slot);
  end.node = node;
  if (node != root) at(node).slots.push_back(slot);
}

void Prefixes::extend(int slot, std::span<const int32_t> tokens) {
  End& end = ends_[static_cast<size_t>(slot)];
  while (!tokens.empty()) {
    const std::vector<int32_t>& edge = at(end.node).edge;
    const auto from = edge.begin() + (end.length - at(end.node).start);
    const auto same = std::mismatch(from, edge.end(), tokens.begin(), tokens.end()).first - from;
    end.length += static_cast<int>(same);
    tokens = tokens.subspan(static_cast<size_t>(same));
    if (tokens.empty()) return;
    if (end.length < at(end.node).end()) split(end.node, end.length);
    const Node& node = at(end.node);
    if (const auto next = node.children.find(tokens[0]); next != node.children.end()) {
      // The first token of its edge must count at once: nobody ends before it.
      end.length++;
      tokens = tokens.subspan(1);
      settle(slot, next->second);
      continue;
    }
    if (end.node == root || !node.children.empty()) {
      settle(slot, add_node(end.node, tokens));
    } else {
      at(end.node).edge.insert(at(end.node).edge.end(), tokens.begin(), tokens.end());
      tokens_ += static_cast<int64_t>(tokens.size());
    }
    end.length += static_cast<int>(tokens.size());
    return;
  }
}

void Prefixes::truncate(int slot, int length) {
  End& end = ends_[static_cast<size_t>(slot)];
  assert(length <= end.length);
  if (length == end.length) return;
  const int left = end.node;
  end.length = length;
  int node = left;
  while (node != root && at(node).start >= length) node = at(node).parent;
  settle(slot, node);
  prune(left);
}

// Cuts an edge in two after the node's first `length` tokens, counted from the root; the lower part is a node of its own.
void Prefixes::split(int node, int length) {
  const std::vector<int32_t> edge = at(node).edge;
  const auto cut = static_cast<size_t>(length - at(node).start);
  std::map<int32_t, int> children;
  std::swap(children, at(node).children);
  at(node).edge.resize(cut);
  tokens_ -= static_cast<int64_t>(edge.size() - cut);
  const int lower = add_node(node, std::span(edge).subspan(cut));
  for (const auto& [token, child] : children) at(child).parent = lower;
  at(lower).children = std::move(children);
  const std::vector<int> slots = at(node).slots;
  for (const int slot : slots)
    if (ends_[static_cast<size_t>(slot)].length > length) settle(slot, lower);
}

// Takes away what no slot holds any more, from `node` on up.
void Prefixes::prune(int node) {
  while (node != root && at(node).children.empty()) {
    int longest = at(node).start;
    for (const int slot : at(node).slots) longest = std::max(longest, ends_[static_cast<size_t>(slot)].length);
    if (longest > at(node).start) {
      tokens_ -= at(node).end() - longest;
      at(node).edge.resize(static_cast<size_t>(longest - at(node).start));
      return;
    }
    const int parent = at(node).parent;
    at(parent).children.erase(at(node).edge[0]);
    free_node(node);
    node = parent;
  }
  if (node != root && at(node).children.size() == 1) merge_only_child(node);
}

void Prefixes::merge_only_child(int node) {
  const int child = at(node).children.begin()->second;
  at(node).edge.insert(at(node).edge.end(), at(child).edge.begin(), at(child).edge.end());
  tokens_ += static_cast<int64_t>(at(child).edge.size());
  const std::vector<int> slots = at(child).slots;
  for (const int slot : slots) settle(slot, node);
  at(node).children = std::move(at(child).children);
  for (const auto& [token, below] : at(node).children) at(below).parent = node;
  free_node(child);
}

// All slots that end below a node, but for one of its branches.
bool Prefixes::visit_below(int node, int except, int length, const Visit& visit) const {
  std::vector<int> nodes;
  for (const auto& [token, child] : at(node).children)
    if (child != except) nodes.push_back(child);
  while (!nodes.empty()) {
    const Node& next = at(nodes.back());
    nodes.pop_back();
    for (const int slot : next.slots)
      if (!visit(slot, length)) return false;
    for (const auto& [token, child] : next.children) nodes.push_back(child);
  }
  return true;
}

void Prefixes::match(std::span<const int32_t> tokens, const Visit& visit) const {
  int node = root, matched = 0;
  for (;;) {
    const Node& here = at(node);
    const auto rest = tokens.subspan(static_cast<size_t>(here.start));
    matched = here.start + static_cast<int>(std::mismatch(here.edge.begin(), here.edge.end(), rest.begin(), rest.end()).first - here.edge.begin());
    if (matched < here.end() || matched == static_cast<int>(tokens.size())) break;
    const auto next = here.children.find(tokens[static_cast<size_t>(matched)]);
    if (next == here.children.end()) break;
    node = next->second;
  }
  for (int except = none; node != root; except = node, node = at(node).parent) {
    // What branches off above matched as far as that.
    matched = std::min(matched, at(node).end());
    if (!visit_below(node, except, matched, visit)) return;
    std::vector<int> slots = at(node).slots;
    const auto length = [&](int slot) { return std::min(matched, ends_[static_cast<size_t>(slot)].length); };
    std::sort(slots.begin(), slots.end(), [&](int a, int b) { return length(a) != length(b) ? length(a) > length(b) : a < b; });
    for (const int slot : slots)
      if (!visit(slot, length(slot))) return;
  }
}

}  // namespace millrace
