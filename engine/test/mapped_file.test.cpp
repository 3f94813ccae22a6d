// What is copied out of a mapped file is what it holds, through the kernel's cache or past it.
#include "format/mapped_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

// Deleted with the object. In the folder of the test, since a memory file system has nothing but its cache.
struct File {
  explicit File(size_t count) : bytes(count) {
    test::Random random;
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.between(0, 255));
    const int descriptor = mkstemp(path.data());
    REQUIRE(descriptor >= 0);
    REQUIRE(write(descriptor, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    fsync(descriptor);
    close(descriptor);
  }
  ~File() { unlink(path.c_str()); }
  void forget() const {
    const int descriptor = open(path.c_str(), O_RDONLY);
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    close(descriptor);
  }

  std::string path = "mapped_file.XXXXXX";
  std::vector<uint8_t> bytes;
};

}  // namespace

TEST("any part of a file is copied, cached or not, by several threads") {
  const File file(5'000'001);
  for (const bool is_cached : {true, false}) {
    auto opened = MappedFile::open(file.path);
    REQUIRE(opened.ok(), opened.message());
    const MappedFile mapped = opened.take();
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (uint64_t seed = 0; seed < 2; seed++)
      threads.emplace_back([&, seed] {
        test::Random random(seed);
        for (int round = 0; round < 40; round++) {
          if (!is_cached && round % 8 == 0) file.forget();
          const auto first = static_cast<size_t>(random.between(0, 5'000'000)), most = file.bytes.size() - first;
          const size_t count = round == 0 ? most : std::min(most, static_cast<size_t>(random.between(0, 3'000'000)));
          std::vector<uint8_t> read(count + 1, 7);
          const Status status = mapped.read(mapped.bytes().data() + first, count, read.data());
          const bool is_right = status.ok() && std::equal(read.begin(), read.end() - 1, file.bytes.begin() + static_cast<std::ptrdiff_t>(first)) && read[count] == 7;
          wrong += is_right ? 0 : 1;
        }
      });
    for (std::thread& thread : threads) thread.join();
    CHECK_EQUAL(wrong.load(), 0);
    if (is_cached) CHECK_EQUAL(mapped.direct_bytes(), uint64_t{0});
  }
}

TEST("a file knows what it holds") {
  const File file(10'000);
  const MappedFile mapped = MappedFile::open(file.path).take();
  const uint8_t* begin = mapped.bytes().data();
  CHECK(mapped.holds(begin, 10'000) && mapped.holds(begin + 9'999, 1));
  CHECK(!mapped.holds(begin, 10'001) && !mapped.holds(begin + 10'000, 1) && !mapped.holds(begin - 1, 1) && !mapped.holds(file.bytes.data(), 1));
}

TEST("a file that was cut short since is an error, not a crash") {
  const File file(100'000);
  const MappedFile mapped = MappedFile::open(file.path).take();
  REQUIRE(truncate(file.path.c_str(), 50'000) == 0);
  std::vector<uint8_t> read(100'000);
  const Status status = mapped.read(mapped.bytes().data() + 40'000, 20'000, read.data());
  CHECK_EQUAL(status.message(), file.path + " ends at byte 50000: it was cut short while it was being read");
}
