#include "machine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace millrace {
namespace {

// This process's cgroup (v2), from the root of all; empty where there is none.
std::string own_cgroup() {
  std::ifstream self("/proc/self/cgroup");
  std::string line;
  while (std::getline(self, line))
    if (line.rfind("0::", 0) == 0) return line.substr(3);
  return "";
}

// cpu.max holds "quota period" in microseconds, or "max period".
int quota_threads(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || period <= 0) return std::numeric_limits<int>::max();
  return std::max(1, static_cast<int>(quota / period + 0.5));
}

// memory.max holds bytes, or "max".
uint64_t memory_left(const std::string& folder) {
  std::ifstream max_file(folder + "/memory.max"), used_file(folder + "/memory.current");
  uint64_t max_bytes = 0, used_bytes = 0;
  if (!(max_file >> max_bytes) || !(used_file >> used_bytes)) return std::numeric_limits<uint64_t>::max();
  return max_bytes > used_bytes ? max_bytes - used_bytes : 0;
}

int affinity_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

uint64_t memory_available() {
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (info >> key >> kib >> unit)
    if (key == "MemAvailable:") return kib * 1024;
  return 0;
}

#if defined(__x86_64__)
// Older compilers know every feature that we ask for but this one.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

CgroupLimits read_cgroup(const std::string& root, const std::string& path) {
  CgroupLimits tightest;
  for (std::string at = path;; at.resize(at.rfind('/'))) {
    tightest.threads = std::min(tightest.threads, quota_threads(root + at));
    tightest.memory_left_bytes = std::min(tightest.memory_left_bytes, memory_left(root + at));
    if (at.rfind('/') == std::string::npos) return tightest;
  }
}

Machine inspect_machine() {
  Machine machine;
  const CgroupLimits cgroup = read_cgroup("/sys/fs/cgroup", own_cgroup());
  machine.threads = std::min(affinity_threads(), cgroup.threads);
  machine.memory_free_bytes = std::min(memory_available(), cgroup.memory_left_bytes);
#if defined(__x86_64__)
  machine.has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  machine.has_avx512 = machine.has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512vnni");
#endif
  return machine;
}

}  // namespace millrace
