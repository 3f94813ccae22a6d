#include "machine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

namespace millrace {
namespace {

// The cgroup v2 file `name` of this process, or of the nearest ancestor that has it; empty where there is none.
std::string cgroup_file(const std::string& name) {
  std::ifstream self("/proc/self/cgroup");
  std::string line, path;
  while (std::getline(self, line))
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  for (;;) {
    std::ifstream file("/sys/fs/cgroup" + path + "/" + name);
    std::string content;
    if (file && std::getline(file, content)) return content;
    if (path.empty() || path == "/") return "";
    path = path.substr(0, path.rfind('/'));
  }
}

int affinity_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// cpu.max holds "quota period" in microseconds, or "max period".
int quota_threads() {
  std::istringstream line(cgroup_file("cpu.max"));
  std::string quota;
  double period = 0;
  if (!(line >> quota >> period) || quota == "max" || period <= 0) return std::numeric_limits<int>::max();
  return std::max(1, static_cast<int>(std::stod(quota) / period + 0.5));
}

uint64_t memory_available() {
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (info >> key >> kib >> unit)
    if (key == "MemAvailable:") return kib * 1024;
  return 0;
}

uint64_t cgroup_memory_left() {
  const std::string limit = cgroup_file("memory.max"), used = cgroup_file("memory.current");
  if (limit.empty() || limit == "max" || used.empty()) return std::numeric_limits<uint64_t>::max();
  const uint64_t limit_bytes = std::stoull(limit), used_bytes = std::stoull(used);
  return limit_bytes > used_bytes ? limit_bytes - used_bytes : 0;
}

#if defined(__x86_64__)
// Older compilers know every feature that we ask for but this one.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

Machine inspect_machine() {
  Machine machine;
  machine.threads = std::min(affinity_threads(), quota_threads());
  machine.memory_free_bytes = std::min(memory_available(), cgroup_memory_left());
#if defined(__x86_64__)
  machine.has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  machine.has_avx512 = machine.has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512vnni");
#endif
  return machine;
}

}  // namespace millrace
