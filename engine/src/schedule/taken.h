#pragma once

namespace millrace {

// The slot that a sequence got, and how many of its first positions are in memory already.
struct Taken {
  int slot = -1;
  int cached = 0;
};

}  // namespace millrace
