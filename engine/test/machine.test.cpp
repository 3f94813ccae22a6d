// What the machine allows: of a path of cgroups the tightest limit, wherever in it that stands.
#include "base/machine.h"

#include <filesystem>
#include <fstream>

#include "support/gguf_writer.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

constexpr int no_quota = std::numeric_limits<int>::max();
constexpr uint64_t no_limit = std::numeric_limits<uint64_t>::max();

struct Tree {
  test::TemporaryFolder folder;

  void write(const std::string& path, const std::string& content) const {
    const std::filesystem::path whole = folder.path() + path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << content << "\n";
  }
  CgroupLimits read(const std::string& path) const { return read_cgroup(folder.path(), path); }
};

}  // namespace

TEST("no files, and files that say max, allow all") {
  Tree tree;
  CHECK_EQUAL(tree.read("/a/b").threads, no_quota);
  CHECK_EQUAL(tree.read("").memory_left_bytes, no_limit);
  tree.write("/a/cpu.max", "max 100000");
  tree.write("/a/memory.max", "max");
  tree.write("/a/memory.current", "5");
  CHECK_EQUAL(tree.read("/a/b").threads, no_quota);
  CHECK_EQUAL(tree.read("/a/b").memory_left_bytes, no_limit);
  CHECK_EQUAL(tree.read("/").threads, no_quota);
}

TEST("the nearest limit does not hide a tighter one above it") {
  Tree tree;
  tree.write("/a/cpu.max", "150000 100000");
  tree.write("/a/b/cpu.max", "800000 100000");
  tree.write("/a/b/c/cpu.max", "max 100000");
  tree.write("/a/memory.max", "1000");
  tree.write("/a/memory.current", "900");
  tree.write("/a/b/memory.max", "500");
  tree.write("/a/b/memory.current", "300");
  CHECK_EQUAL(tree.read("/a/b/c").threads, 2);
  CHECK_EQUAL(tree.read("/a/b/c").memory_left_bytes, uint64_t{100});
  CHECK_EQUAL(tree.read("/a").memory_left_bytes, uint64_t{100});
  CHECK_EQUAL(tree.read("/x/b").threads, no_quota);
  tree.write("/a/b/memory.current", "600");
  CHECK_EQUAL(tree.read("/a/b").memory_left_bytes, uint64_t{0});
}

TEST("less than one core is one thread, and what is no number limits nothing") {
  Tree tree;
  tree.write("/a/cpu.max", "20000 100000");
  CHECK_EQUAL(tree.read("/a").threads, 1);
  tree.write("/a/cpu.max", "nonsense");
  tree.write("/a/memory.max", "much");
  tree.write("/a/memory.current", "1");
  CHECK_EQUAL(tree.read("/a").threads, no_quota);
  CHECK_EQUAL(tree.read("/a").memory_left_bytes, no_limit);
}
