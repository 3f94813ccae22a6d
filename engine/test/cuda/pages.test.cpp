// KV pages of a GPU: copies are of what the steps before them wrote, and changes of the mapping made meanwhile do not meet them.
#include <algorithm>
#include <vector>

#include "kv/memory.h"
#include "support/cuda_step.h"
#include "support/test.h"

using namespace millrace;
using test::need_gpu;

namespace {

std::unique_ptr<KvMemory> reserve(const KvMemory::Shape& shape) {
  auto pages = reserve_cuda_pages(shape.places(), cuda_granule_bytes, shape.pages_max);
  REQUIRE(pages.ok(), pages.message());
  return std::make_unique<KvMemory>(pages.take(), shape, true);
}

bool holds(const KvMemory& memory, int range, int page, uint8_t value) {
  std::vector<uint8_t> bytes(cuda_granule_bytes);
  check(cudaMemcpy(bytes.data(), memory.base(range) + page * cuda_granule_bytes, bytes.size(), cudaMemcpyDeviceToHost), "reading a page");
  return std::ranges::all_of(bytes, [=](uint8_t byte) { return byte == value; });
}

}  // namespace

TEST("a page that is made one's own or copied has what a step under way writes, though the place it is copied from has another at once") {
  need_gpu();
  cudaStream_t stream;  // as the backend's; the process ends with it
  check(cudaStreamCreate(&stream), "creating a stream");
  const DeviceArray<uint8_t> large(size_t{1} << 30);
  for (int round = 0; round < 20; round++) {
    const std::unique_ptr<KvMemory> memory = reserve({3, 2, 6});
    REQUIRE(memory->map(0, 0).ok() && memory->await().ok());
    // Some ten milliseconds of work, and then the step's own.
    for (int i = 0; i < 20; i++) check(cudaMemsetAsync(large.get(), i, large.bytes(), stream), "keeping the device at work");
    const auto value = static_cast<uint8_t>(100 + round);
    check(cudaMemsetAsync(memory->base(0), value, cuda_granule_bytes, stream), "writing a page");
    REQUIRE(memory->alias(1, 0, 0, 0).ok() && memory->own(1, 0).ok());
    REQUIRE(memory->alias(2, 0, 0, 0).ok() && memory->copy(2, 1, 2, 0).ok());
    memory->unmap(2, 0);
    REQUIRE(memory->map(2, 0).ok() && memory->await().ok());
    check(cudaDeviceSynchronize(), "computing");
    CHECK(holds(*memory, 1, 0, value) && holds(*memory, 2, 1, value));
  }
}

TEST("pages in a row are taken away in one call, and others come in their place") {
  need_gpu();
  constexpr int count = 6;
  for (int round = 0; round < 20; round++) {
    const std::unique_ptr<KvMemory> memory = reserve({2, count, 2 * count});
    const auto fill = [&](int range, int page, uint8_t value) {
      REQUIRE(memory->map(range, page).ok() && memory->await().ok());
      check(cudaMemset(memory->base(range) + page * cuda_granule_bytes, value, cuda_granule_bytes), "writing a page");
    };
    for (int page = 0; page < count; page++) fill(0, page, static_cast<uint8_t>(10 + page));
    REQUIRE(memory->alias(1, 3, 0, 3).ok() && memory->await().ok());
    memory->unmap(0, 1, count - 2);
    CHECK_EQUAL(memory->pages_mapped(), 3);
    for (int page = 1; page < count - 1; page++) fill(0, page, static_cast<uint8_t>(100 + page));
    check(cudaDeviceSynchronize(), "writing");
    CHECK(holds(*memory, 0, 0, 10) && holds(*memory, 0, count - 1, 10 + count - 1) && holds(*memory, 1, 3, 13));
    for (int page = 1; page < count - 1; page++) CHECK(holds(*memory, 0, page, static_cast<uint8_t>(100 + page)));
    memory->unmap(0, 0, count);
    memory->unmap(1, 3);
    CHECK(memory->await().ok() && memory->pages_mapped() == 0);
  }
}
