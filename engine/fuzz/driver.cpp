// Runs a fuzz target without libFuzzer: every seed of a folder, then so many mutations of each. A fault names the mutation's seed by
// which it comes again.
//
//     fuzz_gguf FOLDER [MUTATIONS [FIRST]]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The beginning is changed most: that is where headers are.
Bytes mutate(Bytes bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](size_t limit) { return limit == 0 ? 0 : static_cast<size_t>(random() % limit); };
  for (size_t changes = 1 + below(4); changes > 0 && !bytes.empty(); changes--) {
    const size_t at = below(below(3) == 0 ? bytes.size() : std::min<size_t>(bytes.size(), 2048));
    static constexpr uint64_t hostile[] = {0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, 0x8000000000000000u, 0xffffffffffffffffu};
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<uint8_t>(random());
        break;
      case 1:
        bytes[at] ^= static_cast<uint8_t>(1 << below(8));
        break;
      case 2:
        std::memcpy(&bytes[at], &hostile[below(std::size(hostile))], std::min<size_t>(size_t{1} << below(4), bytes.size() - at));
        break;
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at), bytes.begin() + static_cast<ptrdiff_t>(std::min(bytes.size(), at + 1 + below(64))));
        break;
      case 5: {
        const size_t from = below(bytes.size());
        const Bytes piece(bytes.begin() + static_cast<ptrdiff_t>(from), bytes.begin() + static_cast<ptrdiff_t>(std::min(bytes.size(), from + 1 + below(64))));
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), piece.begin(), piece.end());
        break;
      }
      default:
        bytes[at] = static_cast<uint8_t>("0123456789-.{}[]\",:eE"[below(21)]);
    }
  }
  return bytes;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return std::fprintf(stderr, "%s FOLDER [MUTATIONS [FIRST]]\n", arguments[0]), 2;
  const uint64_t mutations = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1000, first = count > 3 ? std::strtoull(arguments[3], nullptr, 10) : std::random_device()();
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(arguments[1])) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::printf("%zu seeds, mutations from %llu\n", paths.size(), static_cast<unsigned long long>(first));
  std::fflush(stdout);
  for (const auto& path : paths) {
    const Bytes seed = read(path);
    LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (uint64_t i = 0; i < mutations; i++) {
      const Bytes bytes = mutate(seed, first + i);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
  }
  return paths.empty() ? 1 : 0;
}
