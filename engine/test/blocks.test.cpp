// Every type's blocks beside the `gguf` Python package's reading of them: the same bits. scripts/golden-types.py makes the fixture.
#include "format/blocks.h"

#include <bit>
#include <cstring>
#include <set>

#include "format/types.h"
#include "support/bytes.h"
#include "support/test.h"

using namespace millrace;

TEST("every type is dequantized to the bits of the gguf package") {
  const std::vector<uint8_t> bytes = test::fixture("types.bin");
  std::set<uint32_t> seen;
  for (size_t at = 0; at < bytes.size();) {
    uint32_t head[3];  // type, bytes, values
    std::memcpy(head, &bytes[at], sizeof(head));
    at += sizeof(head);
    REQUIRE(is_known(head[0]), "type ", head[0]);
    const Type type = static_cast<Type>(head[0]);
    // Aligned as in a file.
    std::vector<uint32_t> stored((head[1] + 3) / 4);
    std::memcpy(stored.data(), &bytes[at], head[1]);
    at += head[1];
    CHECK_EQUAL(uint64_t{head[2]} / static_cast<uint64_t>(values_a_block(type)) * static_cast<uint64_t>(bytes_a_block(type)), uint64_t{head[1]});
    std::vector<float> values(head[2]), expected(head[2]);
    dequantize(type, stored.data(), head[2], values.data());
    std::memcpy(expected.data(), &bytes[at], head[2] * sizeof(float));
    at += head[2] * sizeof(float);
    for (size_t i = 0; i < values.size(); i++)
      CHECK(std::bit_cast<uint32_t>(values[i]) == std::bit_cast<uint32_t>(expected[i]), name_of(head[0]), " value ", i, " is ", values[i], ", not ", expected[i]);
    seen.insert(head[0]);
  }
  CHECK_EQUAL(seen.size(), size_t{16});
}
