// What this machine gives us: threads, memory, instructions. Read once at load, and printed there.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace millrace {

struct Machine {
  int threads = 1;                    // by affinity and the cgroup's cpu.max, whichever is less
  uint64_t memory_free_bytes = 0;     // by MemAvailable and the cgroup's memory.max, whichever is less
  bool has_avx2 = false;              // with FMA and F16C
  bool has_avx512 = false;            // F, BW, DQ, VL and VNNI
};

Machine inspect_machine();

struct CgroupLimits {
  int threads = std::numeric_limits<int>::max();
  uint64_t memory_left_bytes = std::numeric_limits<uint64_t>::max();
};

// The tightest of what the cgroup (v2) at `path` below `root` and all above it allow: each binds all below.
CgroupLimits read_cgroup(const std::string& root, const std::string& path);

}  // namespace millrace
