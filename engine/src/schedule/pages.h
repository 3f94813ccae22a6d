// How many pages a sequence may ever need at once: a pure function of its length.
#pragma once

#include <algorithm>
#include <vector>

namespace millrace {

struct PageNeed {
  struct Group {
    int page_tokens = 16;
    int pages_max = 1 << 30;  // of a group whose layers see a window: what the window and the largest step may touch
  };
  std::vector<Group> groups = {{}};

  int of(int tokens) const {
    int pages = 0;
    for (const Group& group : groups) pages += std::min((tokens + group.page_tokens - 1) / group.page_tokens, group.pages_max);
    return pages;
  }
};

}  // namespace millrace
