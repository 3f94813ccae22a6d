// GGUF files, right and wrong. Whatever a file claims, the answer is a sentence and never a read outside of it: this file runs under
// AddressSanitizer too, where a byte too far ends the test.
#include "format/gguf.h"

#include <cstring>
#include <functional>

#include "format/vocabulary.h"
#include "model/model.h"
#include "support/random.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::GgufWriter;
using test::TemporaryFile;

namespace {

// Everything that loading reads of a file; an empty string where all is well.
std::string problem_of(const std::string& path) {
  auto file = open_model(path);
  if (!file.ok()) return file.message();
  const std::unique_ptr<ModelFile> held = file.take();
  if (auto vocabulary = read_vocabulary(*held); !vocabulary.ok()) return vocabulary.message();
  auto model = read_model(*held);
  if (!model.ok()) return model.message();
  // Every byte that the model will read is touched, so that a sanitizer sees what lies outside.
  unsigned sum = 0;
  for (const FileTensor& tensor : held->tensors())
    for (int64_t i = 0; i < tensor.row_bytes() * tensor.rows(); i++) sum += tensor.bytes[i];
  CHECK(sum != 0xffffffffu);
  return "";
}

std::string problem_of_bytes(const std::string& bytes) { return problem_of(TemporaryFile(bytes).path()); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void check_refused(const std::string& bytes, const std::string& part) {
  const std::string problem = problem_of_bytes(bytes);
  CHECK(contains(problem, part), "wanted \"", part, "\", got \"", problem, "\"");
}

test::TinyShape small_shape() { return {.layers = 1, .hidden = 32, .heads = 2, .kv_heads = 1, .ffn = 32, .vocabulary = 260}; }

}  // namespace

TEST("a good file of every type is read as it was written") {
  test::Random random;
  for (const Type type : test::all_types) {
    test::TinyShape shape = small_shape();
    if (values_a_block(type) > 32) shape.hidden = shape.ffn = values_a_block(type), shape.head_dim = values_a_block(type) / 2;
    shape.type = type;
    CHECK_EQUAL(problem_of_bytes(tiny_model(shape, random)), std::string());
  }
}

TEST("metadata of every kind is found by key, and only as what it is") {
  GgufWriter writer;
  writer.integer("an.integer", 4000000000u);
  writer.number("a.number", 1.5f);
  writer.text("a.text", "caf\xc3\xa9");
  writer.flag("a.flag", true);
  writer.texts("texts", {"", "b"});
  writer.integers("integers", {-1, 2});
  const TemporaryFile path(writer.bytes());
  auto opened = open_model(path.path());
  REQUIRE(opened.ok(), opened.message());
  const std::unique_ptr<ModelFile> file = opened.take();
  CHECK_EQUAL(file->integer("an.integer").value_or(0), int64_t{4000000000});
  CHECK_EQUAL(file->number("an.integer").value_or(0), 4e9);
  CHECK_EQUAL(file->number("a.number").value_or(0), 1.5);
  CHECK_EQUAL(file->string("a.text").value_or(""), std::string("caf\xc3\xa9"));
  CHECK_EQUAL(file->boolean("a.flag").value_or(false), true);
  CHECK_EQUAL(file->strings("texts"), (std::vector<std::string>{"", "b"}));
  CHECK_EQUAL(file->numbers("integers"), (std::vector<double>{-1, 2}));
  CHECK(!file->integer("a.text") && !file->string("an.integer") && !file->integer("missing") && file->strings("integers").empty());
}

TEST("a file cut short anywhere is refused with a sentence") {
  test::Random random;
  const std::string whole = tiny_model(small_shape(), random);
  const TemporaryFile file(whole);
  GgufWriter measured;
  test::Random again;
  add_keys(measured, small_shape(), again);
  add_tensors(measured, small_shape(), again);
  const size_t header = measured.header_bytes();
  // Every length within the first 1,500 bytes of the header and around its end; the rest, all alike, by steps.
  for (size_t length = 0; length < whole.size(); length += length < 1500 || (length > header - 300 && length < header + 100) ? 1 : 97) {
    file.write(whole.substr(0, length));
    const std::string problem = problem_of(file.path());
    CHECK(problem.size() > file.path().size() + 10, "cut at ", length, ": \"", problem, "\"");
  }
  file.write(whole.substr(0, whole.size() - 1));
  CHECK(contains(problem_of(file.path()), "cut short"), problem_of(file.path()));
}

TEST("a file damaged at random is read or refused, never more") {
  test::Random random;
  test::TinyShape shape = small_shape();
  shape.vocabulary = 300;
  const std::string whole = tiny_model(shape, random);
  const TemporaryFile file(whole);
  GgufWriter measured;
  test::Random again;
  add_keys(measured, shape, again);
  add_tensors(measured, shape, again);
  const int header = static_cast<int>(measured.header_bytes());
  int refused = 0;
  for (int round = 0; round < 1500; round++) {
    std::string bytes = whole;
    for (int damage = random.between(1, 4); damage > 0; damage--) {
      const auto at = static_cast<size_t>(random.between(0, header - 1));
      const int kind = random.between(0, 2);
      if (kind == 0) bytes[at] = static_cast<char>(random.next());
      if (kind == 1) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.between(0, 7)));
      if (kind == 2) std::memset(&bytes[at], random.chance(0.5) ? 0xff : 0, std::min<size_t>(8, bytes.size() - at));
    }
    file.write(bytes);
    if (!problem_of(file.path()).empty()) refused++;
  }
  CHECK(refused > 500, "of 1500 damaged files ", refused, " were refused");
}

TEST("other kinds of files are named for what they are") {
  CHECK(contains(problem_of("/nonexistent/model.gguf"), "cannot be opened: No such file"));
  CHECK(contains(problem_of("/proc"), "is a folder without a config.json"));
  CHECK(contains(problem_of("/dev/null"), "is not a file"));
  check_refused("", "has only 0 bytes");
  check_refused(std::string(100, 'x'), "does not begin with GGUF");
  for (const uint32_t version : {0u, 1u, 2u, 4u, 0x03000000u}) {
    GgufWriter writer;
    writer.version = version;
    check_refused(writer.bytes(), "is GGUF version " + std::to_string(version));
  }
}

TEST("counts and lengths that the file has no bytes for are refused") {
  GgufWriter writer;
  writer.text("general.architecture", "llama");
  check_refused(writer.bytes(UINT64_MAX, 1), "claims 18446744073709551615 tensors");
  check_refused(writer.bytes(0, UINT64_MAX), "and 18446744073709551615 keys");
  // The padding behind the header reads as empty names, so these end where it does, or at what it says.
  CHECK(problem_of_bytes(writer.bytes(1u << 20, 1)).size() > 40);
  CHECK(problem_of_bytes(writer.bytes(0, 1u << 20)).size() > 40);
  const auto patched = [](std::string bytes, size_t at, uint64_t value) {
    std::memcpy(&bytes[at], &value, sizeof(value));
    return bytes;
  };
  for (const uint64_t hostile : {UINT64_MAX, uint64_t{1} << 63, uint64_t{1} << 40, uint64_t{100000}}) {
    check_refused(patched(writer.bytes(), 24, hostile), "cut short");                  // the key's length
    check_refused(patched(writer.bytes(), 24 + 8 + 20 + 4, hostile), "cut short");     // the text's length
    GgufWriter array;
    array.integers("k", {1, 2, 3});
    check_refused(patched(array.bytes(), 24 + 8 + 1 + 4 + 4, hostile), "items under k");  // the array's count
  }
}

TEST("unknown kinds of values and arrays of arrays are refused") {
  for (const uint32_t kind : {13u, 200u, 0xffffffffu}) {
    GgufWriter writer;
    writer.integer("k", 1);
    std::string bytes = writer.bytes();
    std::memcpy(&bytes[24 + 8 + 1], &kind, sizeof(kind));
    check_refused(bytes, "unknown kind " + std::to_string(kind));
    GgufWriter array;
    array.integers("k", {1});
    bytes = array.bytes();
    std::memcpy(&bytes[24 + 8 + 1 + 4], &kind, sizeof(kind));
    check_refused(bytes, "array of unknown kind under k");
  }
  GgufWriter nested;
  nested.integers("k", {1});
  std::string bytes = nested.bytes();
  bytes[24 + 8 + 1 + 4] = 9;
  check_refused(bytes, "array of unknown kind under k");
}

TEST("a key or a tensor given twice is refused") {
  GgufWriter keys;
  keys.integer("k", 1);
  keys.integer("k", 2);
  check_refused(keys.bytes(), "has the key k twice");
  GgufWriter tensors;
  tensors.tensor("t", 0, {1}, std::string(4, '\0'));
  tensors.tensor("t", 0, {1}, std::string(4, '\0'));
  check_refused(tensors.bytes(), "has the tensor t twice");
}

TEST("tensors with impossible dimensions, types or places are refused") {
  const auto with = [](uint32_t type, std::vector<uint64_t> dimensions, std::string data = std::string(64, '\0')) {
    GgufWriter writer;
    writer.tensor("t", type, dimensions, std::move(data));
    return writer.bytes();
  };
  check_refused(with(0, {}), "gives tensor t 0 dimensions");
  check_refused(with(0, {1, 1, 1, 1, 1}), "gives tensor t 5 dimensions");
  check_refused(with(0, {0}), "a dimension of 0");
  check_refused(with(0, {1, UINT64_MAX}), "a dimension of -1");
  check_refused(with(0, {uint64_t{1} << 32, uint64_t{1} << 32}), "a dimension of 4294967296");
  check_refused(with(0, {uint64_t{1} << 39, 2, 1, 1}), "cut short");
  check_refused(with(0, {17}), "ends at byte");
  check_refused(with(2, {48}), "no multiple of its block of 32");
  check_refused(with(12, {128}), "no multiple of its block of 256");
  check_refused(with(16, {256}), "in type IQ2_XXS; read are F32, F16, BF16");
  check_refused(with(0x10000, {256}), "in type derived");
  check_refused(with(99, {32}), "in type number 99");

  GgufWriter writer;
  writer.tensor("t", 0, {8}, std::string(32, '\0'));
  std::string bytes = writer.bytes();
  const auto place = [&](uint64_t offset) { std::memcpy(&bytes[writer.header_bytes() - 8], &offset, sizeof(offset)); };
  place(7);
  check_refused(bytes, "places tensor t at 7, not aligned to 32");
  place(UINT64_MAX - 31);
  check_refused(bytes, "cut short");
  place(32);
  check_refused(bytes, "cut short");
}

TEST("an alignment that is no power of two from 8 up is refused") {
  for (const uint32_t alignment : {0u, 1u, 2u, 4u, 24u, 1u << 30}) {
    GgufWriter writer;
    writer.alignment = 1;
    writer.integer("general.alignment", alignment);
    check_refused(writer.bytes(), "has an alignment of " + std::to_string(alignment));
  }
  test::Random random;
  GgufWriter writer;
  writer.alignment = 8;
  writer.integer("general.alignment", 8);
  add_keys(writer, small_shape(), random);
  add_tensors(writer, small_shape(), random);
  CHECK_EQUAL(problem_of_bytes(writer.bytes()), std::string());
}

// A model in three files of one folder; `bend` may change what a part says of itself.
std::string problem_of_parts(const test::TemporaryFolder& folder, const std::function<void(int, GgufWriter&)>& bend = {}) {
  const std::string whole_names[] = {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"};
  for (int part = 0; part < 3; part++) {
    GgufWriter file;
    if (part == 0) file.text("general.architecture", "none");
    file.integer("split.no", static_cast<uint32_t>(part));
    file.integer("split.count", 3);
    if (part == 0) file.integer("split.tensors.count", 3);
    file.tensor(whole_names[part], 0, {4}, std::string(16, static_cast<char>('a' + part)));
    if (bend) bend(part, file);
    folder.write("m-0000" + std::to_string(part + 1) + "-of-00003.gguf", file.bytes());
  }
  auto opened = open_model(folder.path() + "/m-00002-of-00003.gguf");
  if (!opened.ok()) return opened.message();
  const std::unique_ptr<ModelFile> model = opened.take();
  CHECK_EQUAL(model->tensors().size(), size_t{3});
  CHECK_EQUAL(model->string("general.architecture").value_or(""), std::string("none"));
  for (int part = 0; part < 3; part++) CHECK_EQUAL(*model->tensor(whole_names[part])->bytes, static_cast<uint8_t>('a' + part));
  return "";
}

TEST("a split model is read whole, whichever part is named, and a part that is missing or wrong is named") {
  const test::TemporaryFolder folder;
  CHECK_EQUAL(problem_of_parts(folder), std::string());
  const auto refused = [&](const std::function<void(int, GgufWriter&)>& bend, const std::string& part) {
    const std::string problem = problem_of_parts(folder, bend);
    CHECK(contains(problem, part), "wanted \"", part, "\", got \"", problem, "\"");
  };
  refused([](int part, GgufWriter& file) { if (part == 2) file.tensor("blk.0.attn_q.weight", 0, {4}, std::string(16, 'x')); }, "which another part has too");
  refused([](int part, GgufWriter& file) { if (part == 1) file.tensor("more", 0, {4}, std::string(16, 'x')); }, "claims 3 tensors in all of the model's files, which have 4");
  folder.remove("m-00003-of-00003.gguf");
  CHECK(contains(problem_of(folder.path() + "/m-00001-of-00003.gguf"), "these are missing: " + folder.path() + "/m-00003-of-00003.gguf"));
  folder.write("m-00003-of-00003.gguf", folder.read("m-00002-of-00003.gguf"));
  CHECK(contains(problem_of(folder.path() + "/m-00001-of-00003.gguf"), "says that it is part 2 of 3, which is not what its name says"));
  folder.write("alone.gguf", folder.read("m-00002-of-00003.gguf"));
  CHECK(contains(problem_of(folder.path() + "/alone.gguf"), "is one of 3 files of a model"));
}
