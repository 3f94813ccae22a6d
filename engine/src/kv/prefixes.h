// Which slot's memory holds which tokens: a radix tree over token ids. Each slot is a path from the root; paths that begin alike are one.
// An edge is as long as it can be, and a slot may end anywhere in it, so that a sequence which grows by a token costs a token.
//
// Bounded by what it is told of: never more tokens than all slots hold together, and fewer than two nodes a slot. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

namespace millrace {

class Prefixes {
 public:
  explicit Prefixes(int slots);

  // The slot holds these tokens after those it held.
  void extend(int slot, std::span<const int32_t> tokens);
  // The slot holds its first `length` tokens only.
  void truncate(int slot, int length);
  void remove(int slot) { truncate(slot, 0); }
  int length(int slot) const { return ends_[static_cast<size_t>(slot)].length; }

  // Calls visit(slot, length) for every slot that begins as `tokens` does, the longest match first, until it returns false.
  using Visit = std::function<bool(int slot, int length)>;
  void match(std::span<const int32_t> tokens, const Visit& visit) const;

  int node_count() const { return static_cast<int>(nodes_.size() - unused_.size()); }
  int64_t token_count() const { return tokens_; }

 private:
  static constexpr int root = 0, none = -1;
  struct Node {
    int parent = none;
    int start = 0;                    // tokens above it
    std::vector<int32_t> edge;        // from its parent; the root has none
    std::map<int32_t, int> children;  // by the first token of their edge
    std::vector<int> slots;           // that end in its edge, behind its first token

    int end() const { return start + static_cast<int>(edge.size()); }
  };
  // Where a slot ends: at `length` tokens, in the edge of `node`; at the root where it holds nothing.
  struct End {
    int node = root;
    int length = 0;
  };

  Node& at(int node) { return nodes_[static_cast<size_t>(node)]; }
  const Node& at(int node) const { return nodes_[static_cast<size_t>(node)]; }
  int add_node(int parent, std::span<const int32_t> edge);
  void free_node(int node);
  void settle(int slot, int node);
  void split(int node, int length);
  void prune(int node);
  void merge_only_child(int node);
  bool visit_below(int node, int except, int length, const Visit& visit) const;

  std::vector<Node> nodes_;
  std::vector<int> unused_;
  std::vector<End> ends_;  // [slot]
  int64_t tokens_ = 0;     // in all edges
};

}  // namespace millrace
