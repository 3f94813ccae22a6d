// Damaged models that load nevertheless: whatever their numbers say, they run without harm. Under AddressSanitizer a read too far ends it.
#include <cstring>

#include "engine.h"
#include "support/random.h"
#include "support/recorder.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;

namespace {

constexpr test::TinyShape shape = {.layers = 1, .hidden = 32, .heads = 2, .kv_heads = 1, .ffn = 32, .vocabulary = 260, .context = 64, .end_token = true};

// Loads the file and lets it answer; returns whether it got as far as that.
bool runs(const std::string& path, KernelSet kernels) {
  test::Recorder recorder;
  auto loaded = Engine::load({.path = path, .threads = 1, .kv_memory_bytes = 64 << 20, .slots = 1, .kernels = kernels}, recorder.listener());
  if (!loaded.ok()) {
    CHECK(loaded.message().size() > 10, loaded.message());
    return false;
  }
  const std::unique_ptr<Engine> engine = loaded.take();
  const Status status = engine->submit({.id = 1, .prompt = {1, 2, 3, 4, 5}, .tokens_max = 4, .sampling = {.temperature = 1}});
  if (!status.ok()) return false;
  CHECK(recorder.finished(1).end()->seq >= 1);
  return true;
}

}  // namespace

TEST("a model whose metadata are damaged runs or is refused") {
  test::Random random;
  test::GgufWriter writer;
  add_keys(writer, shape, random);
  const int keys_end = static_cast<int>(writer.header_bytes());
  add_tensors(writer, shape, random);
  const std::string whole = writer.bytes();
  const test::TemporaryFile file(whole);
  int ran = 0;
  for (int round = 0; round < 300; round++) {
    std::string bytes = whole;
    // Among the first keys lie the numbers of the model; the vocabulary's thousands of bytes come after.
    const auto at = static_cast<size_t>(random.between(24, random.chance(0.8) ? 560 : keys_end - 1));
    bytes[at] = random.chance(0.5) ? static_cast<char>(random.next()) : static_cast<char>(bytes[at] ^ (1 << random.between(0, 7)));
    file.write(bytes);
    if (runs(file.path(), round % 2 == 0 ? KernelSet::automatic : KernelSet::reference)) ran++;
  }
  CHECK(ran > 0, "none of 300 damaged models ran: the damage tests nothing behind the header");
}

TEST("a model whose weights are noise runs") {
  for (const Type type : {Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::q4_0, Type::q4_1})
    for (const KernelSet kernels : {KernelSet::reference, KernelSet::automatic}) {
      test::Random random;
      test::TinyShape noisy = shape;
      noisy.type = type;
      test::GgufWriter writer;
      add_keys(writer, noisy, random);
      add_tensors(writer, noisy, random);
      std::string bytes = writer.bytes();
      for (size_t at = writer.header_bytes(); at < bytes.size(); at++) bytes[at] = static_cast<char>(random.next());
      CHECK(runs(test::TemporaryFile(bytes).path(), kernels), name_of(static_cast<uint32_t>(type)));
    }
}
