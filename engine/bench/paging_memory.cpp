#include "paging_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

namespace millrace::bench {
namespace {

constexpr int64_t huge_page = 2 << 20;
constexpr size_t forget_bytes = 96 << 20;  // thrice a core's share of the last level cache, of the machines this ran on

// Exponents from 2^-8 to 2^-1, any sign and fraction.
void fill(uint8_t* bytes, int64_t size, Random& random) {
  for (int64_t at = 0; at < size; at += 8) {
    uint64_t word = random.next();
    for (int shift = 0; shift < 64; shift += 16) {
      const uint64_t exponent = 7 + (word >> shift >> 10 & 7);
      word = (word & ~(uint64_t{0x7c00} << shift)) | exponent << 10 << shift;
    }
    std::memcpy(bytes + at, &word, 8);
  }
}

}  // namespace

Pool::Pool(Backing backing, const KvLayout& layout, int layers, int64_t pages) : layout_(layout), pages_(pages) {
  const auto bytes = static_cast<size_t>((size() + huge_page - 1) / huge_page * huge_page);
  void* at = MAP_FAILED;
  if (backing == Backing::file) {
    file_ = memfd_create("millrace-bench", MFD_CLOEXEC);
    if (file_ >= 0 && ftruncate(file_, static_cast<off_t>(bytes)) == 0)
      at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, 0);
  } else {
    at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at != MAP_FAILED) madvise(at, bytes, MADV_HUGEPAGE);
  }
  if (at == MAP_FAILED) return;
  bytes_ = static_cast<uint8_t*>(at);
  Random random(1);
  for (int64_t page = 0; page < pages_; page++) {
    uint8_t* first = bytes_ + page * layout_.page_bytes;
    for (int64_t byte = 0; byte < layout_.page_bytes; byte += 4096) first[byte] = 1;
    fill(first, layers * 2 * layout_.kv_heads * layout_.head_bytes(), random);
  }
}

Pool::~Pool() {
  if (bytes_ != nullptr) munmap(bytes_, static_cast<size_t>((size() + huge_page - 1) / huge_page * huge_page));
  if (file_ >= 0) close(file_);
}

int64_t Pool::huge_bytes() const {
  std::FILE* maps = std::fopen("/proc/self/smaps", "r");
  if (maps == nullptr) return 0;
  char line[512];
  bool inside = false;
  int64_t total = 0;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    unsigned long from = 0, to = 0;
    long kibibytes = 0;
    if (std::sscanf(line, "%lx-%lx ", &from, &to) == 2)
      inside = from < reinterpret_cast<uintptr_t>(bytes_ + size()) && to > reinterpret_cast<uintptr_t>(bytes_);
    else if (inside && std::sscanf(line, "AnonHugePages: %ld kB", &kibibytes) == 1)
      total += int64_t{1024} * kibibytes;
  }
  std::fclose(maps);
  return total;
}

std::vector<int64_t> Pool::deal(int64_t count, Random& random) const {
  std::vector<int64_t> pages(static_cast<size_t>(pages_));
  for (size_t i = 0; i < pages.size(); i++) pages[i] = static_cast<int64_t>(i);
  for (size_t i = pages.size() - 1; i > 0; i--) std::swap(pages[i], pages[random.next() % (i + 1)]);
  pages.resize(static_cast<size_t>(count));
  return pages;
}

Range::Range(const Pool& pool, const std::vector<int64_t>& pages) : size_(pages.size() * static_cast<size_t>(pool.layout().page_bytes)) {
  void* at = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return;
  bytes_ = static_cast<uint8_t*>(at);
  const int64_t page_bytes = pool.layout().page_bytes;
  for (size_t i = 0; i < pages.size(); i++) {
    uint8_t* page = bytes_ + static_cast<int64_t>(i) * page_bytes;
    if (mmap(page, static_cast<size_t>(page_bytes), PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, pool.file(), pages[i] * page_bytes) != MAP_FAILED) continue;
    munmap(bytes_, size_);
    bytes_ = nullptr;
    return;
  }
}

Range::~Range() {
  if (bytes_ != nullptr) munmap(bytes_, size_);
}

void forget() {
  static const std::vector<uint64_t> words(forget_bytes / sizeof(uint64_t), 1);
  static volatile uint64_t kept = 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < words.size(); i += 8) sum += words[i];
  kept = kept + sum;
}

}  // namespace millrace::bench
