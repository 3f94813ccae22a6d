// From a file to operators: what a Llama must bring along, and what is refused by name.
#include "model/model.h"

#include <cmath>

#include "format/vocabulary.h"
#include "support/random.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::GgufWriter;
using test::TemporaryFile;

namespace {

Status status_of(const std::string& bytes) {
  const TemporaryFile path(bytes);
  auto file = open_model(path.path());
  if (!file.ok()) return file.status();
  const std::unique_ptr<ModelFile> held = file.take();
  return read_model(*held).status();
}

void check_refused(const std::string& bytes, const std::string& part) {
  const Status status = status_of(bytes);
  CHECK(status.message().find(part) != std::string::npos, "wanted \"", part, "\", got \"", status.message(), "\"");
}

// A tiny model whose shape and keys a test has bent.
std::string bent(const test::TinyShape& keys, const test::TinyShape& tensors, void (*more)(GgufWriter&) = nullptr) {
  test::Random random;
  GgufWriter file;
  add_keys(file, keys, random);
  add_tensors(file, tensors, random);
  if (more) more(file);
  return file.bytes();
}

Result<Vocabulary> vocabulary_of(const GgufWriter& writer) {
  const TemporaryFile path(writer.bytes());
  auto file = open_model(path.path());
  REQUIRE(file.ok(), file.message());
  return read_vocabulary(*file.take());
}

}  // namespace

TEST("a Llama's operators come in order, tied or with an output of its own") {
  for (const bool tied : {false, true}) {
    test::Random random;
    const TemporaryFile path(tiny_model({.tied = tied}, random));
    auto file = open_model(path.path());
    REQUIRE(file.ok(), file.message());
    const std::unique_ptr<ModelFile> held = file.take();
    auto read = read_model(*held);
    REQUIRE(read.ok(), read.message());
    const Model& model = read.value();
    REQUIRE(model.operators.size() == 1 + 2 * 5 + 1, model.operators.size());
    CHECK(std::holds_alternative<Embed>(model.operators[0]) && std::holds_alternative<Qkv>(model.operators[1]));
    CHECK_EQUAL(std::get<Qkv>(model.operators[6]).layer, 1);
    const Logits& logits = std::get<Logits>(model.operators.back());
    CHECK_EQUAL(logits.output.weight == std::get<Embed>(model.operators[0]).weight, tied);
    CHECK_EQUAL(model.config.vocabulary, 300);
    CHECK_EQUAL(model.config.head_dim, 16);
    const uint64_t layer = 64 * 64 * 2 + 32 * 64 * 2 + 96 * 64 * 3 + 2 * 64, table = 300 * 64;
    CHECK_EQUAL(model.parameters, 2 * layer + 64 + table * (tied ? 1 : 2));
  }
}

TEST("an architecture that we lack is named") {
  GgufWriter file;
  file.text("general.architecture", "mamba");
  check_refused(file.bytes(), "is a model of the architecture \"mamba\", which this engine does not have; it has: falcon, gemma2, ");
  check_refused(GgufWriter().bytes(), "is a model of the architecture \"\"");
}

TEST("a tensor that is missing, left over or of another shape is named") {
  test::Random random;
  const test::TinyShape shape;
  GgufWriter file;
  add_keys(file, shape, random);
  check_refused(file.bytes(), "lacks the tensor token_embd.weight");
  check_refused(bent(shape, shape, [](GgufWriter& more) { more.tensor("blk.0.attn_q.weight.lora_a", 0, {64}, std::string(256, '\0')); }),
                "has the tensor blk.0.attn_q.weight.lora_a, which this architecture does not use here");
  check_refused(bent({.layers = 2}, {.layers = 3}), "has the tensor blk.2.attn_norm.weight, which");
  check_refused(bent({.layers = 3}, {.layers = 2}), "lacks the tensor blk.2.attn_norm.weight");
  check_refused(bent({.ffn = 96}, {.ffn = 128}), "has tensor blk.0.ffn_gate.weight of 128 x 64 where its metadata call for 96 x 64");
  check_refused(bent({.kv_heads = 2}, {.kv_heads = 4}), "has tensor blk.0.attn_k.weight of 64 x 64 where its metadata call for 32 x 64");
  check_refused(bent({.vocabulary = 300}, {.vocabulary = 299}), "has tensor token_embd.weight of 299 x 64");
}

TEST("numbers outside of what the kernels run are refused") {
  check_refused(bent({.layers = 0}, {.layers = 0}), "gives llama.block_count as 0, not 1 to 1024");
  check_refused(bent({.layers = 5000}, {}), "gives llama.block_count as 5000");
  check_refused(bent({.heads = 3}, {.heads = 3}), "has 3 heads over 2 KV heads");
  check_refused(bent({.head_dim = 24}, {.head_dim = 24}), "has heads of 24 dimensions");
  // The kernels read the residual stream 16 values at a time.
  check_refused(bent({.hidden = 40}, {.hidden = 40}), "embedding of 40 values");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.integer("llama.rope.dimension_count", 15); }), "15 of them turning");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.integer("llama.rope.dimension_count", 32); }), "dimension_count as 32, not 1 to 16");
}

TEST("what this engine does not do is refused, not ignored") {
  check_refused(bent({}, {}, [](GgufWriter& file) { file.text("llama.rope.scaling.type", "dynamic"); }), "scales RoPE by \"dynamic\"");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.text("general.type", "adapter"); }), "is a LoRA adapter");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.number("llama.attn_logit_softcapping", 50); }),
                "has the key llama.attn_logit_softcapping, which this architecture does not use here");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.number("llama.residual_scale", 0.5f); }), "has the key llama.residual_scale");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.integer("llama.expert_shared_count", 1); }), "has the key llama.expert_shared_count");
  check_refused(bent({}, {}, [](GgufWriter& file) { file.integer("llama.attention.value_length", 32); }), "has keys of 16 dimensions and values of 32");
  CHECK(status_of(bent({}, {}, [](GgufWriter& file) { file.integer("llama.expert_count", 0); })).ok());
}

// Numbers by hand: 16 dimensions, base 10000, so that pair i turns by 10000^(-i / 8) a position.
TEST("RoPE's frequencies are stretched as the file asks") {
  const auto rope_of = [](void (*keys)(GgufWriter&)) {
    const TemporaryFile path(bent({}, {}, keys));
    auto file = open_model(path.path());
    REQUIRE(file.ok(), file.message());
    const std::unique_ptr<ModelFile> held = file.take();
    auto read = read_model(*held);
    REQUIRE(read.ok(), read.message());
    return read.value().ropes.at(0);
  };
  const auto near = [](float value, double right) { return std::fabs(value - right) <= 1e-6 * right; };
  const Rope plain = rope_of(nullptr);
  CHECK(plain.style == Rope::Style::interleaved);
  CHECK_EQUAL(plain.dims(), 16);
  CHECK(near(plain.frequencies[2], 0.1) && near(plain.frequencies[7], 3.1622777e-4));
  const Rope linear = rope_of([](GgufWriter& file) {
    file.text("llama.rope.scaling.type", "linear");
    file.number("llama.rope.scaling.factor", 4);
  });
  for (size_t i = 0; i < 8; i++) CHECK(near(linear.frequencies[i], plain.frequencies[i] / 4.0));
  const Rope yarn = rope_of([](GgufWriter& file) {
    file.text("llama.rope.scaling.type", "yarn");
    file.number("llama.rope.scaling.factor", 4);
    file.integer("llama.rope.scaling.original_context_length", 64);
  });
  CHECK(near(yarn.attention_factor, 1.138629436));
  CHECK(near(yarn.frequencies[0], 1) && near(yarn.frequencies[7], plain.frequencies[7] / 4.0));
}

TEST("the frequencies for long contexts are taken where the context is long") {
  Model model;
  model.ropes.push_back({.frequencies = {1}, .frequencies_long = {0.5f}, .original_context = 100});
  choose_frequencies(model, 100);
  CHECK_EQUAL(model.ropes[0].frequencies[0], 1.0f);
  choose_frequencies(model, 101);
  CHECK_EQUAL(model.ropes[0].frequencies[0], 0.5f);
}

TEST("a byte-level vocabulary gives each token its bytes, control tokens none") {
  test::Random random;
  GgufWriter file;
  add_keys(file, {.end_token = true}, random);
  auto read = vocabulary_of(file);
  REQUIRE(read.ok(), read.message());
  const Vocabulary vocabulary = read.take();
  for (int byte = 0; byte < 256; byte++) CHECK_EQUAL(vocabulary.bytes[static_cast<size_t>(byte)], std::string(1, static_cast<char>(byte)));
  CHECK_EQUAL(vocabulary.bytes[256], vocabulary.tokens[256]);
  CHECK_EQUAL(vocabulary.bytes[299], std::string());
  CHECK_EQUAL(vocabulary.stops, std::vector<int32_t>{299});
}

TEST("a SentencePiece vocabulary gives spaces and bytes for what stands for them") {
  GgufWriter file;
  file.text("tokenizer.ggml.model", "llama");
  file.texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<0xE2>", "\xe2\x96\x81the", "\xe2\x96\x81", "caf\xc3\xa9"});
  file.integers("tokenizer.ggml.token_type", {2, 3, 3, 6, 1, 1, 1});
  file.integer("tokenizer.ggml.bos_token_id", 1);
  file.integer("tokenizer.ggml.eos_token_id", 2);
  auto read = vocabulary_of(file);
  REQUIRE(read.ok(), read.message());
  const Vocabulary vocabulary = read.take();
  CHECK_EQUAL(vocabulary.bytes[3], std::string("\xe2"));
  CHECK_EQUAL(vocabulary.bytes[4], std::string(" the"));
  CHECK_EQUAL(vocabulary.bytes[5], std::string(" "));
  CHECK_EQUAL(vocabulary.bytes[6], std::string("caf\xc3\xa9"));
  CHECK_EQUAL(vocabulary.bos, 1);
  CHECK_EQUAL(vocabulary.stops, std::vector<int32_t>{2});
  CHECK(vocabulary.add_bos && vocabulary.add_space_prefix);
}

TEST("a vocabulary that contradicts itself is refused") {
  const auto refused = [](GgufWriter& file, const std::string& part) {
    auto read = vocabulary_of(file);
    CHECK(!read.ok() && read.message().find(part) != std::string::npos, "wanted \"", part, "\", got \"", read.ok() ? "" : read.message(), "\"");
  };
  GgufWriter kind;
  kind.text("tokenizer.ggml.model", "bert");
  refused(kind, "tokenizer of kind \"bert\"");
  GgufWriter empty;
  empty.text("tokenizer.ggml.model", "gpt2");
  refused(empty, "a vocabulary of 0 tokens");
  GgufWriter types;
  types.text("tokenizer.ggml.model", "gpt2");
  types.texts("tokenizer.ggml.tokens", {"a", "b"});
  types.integers("tokenizer.ggml.token_type", {1});
  refused(types, "has 2 tokens but 1 types");
  GgufWriter byte;
  byte.text("tokenizer.ggml.model", "llama");
  byte.texts("tokenizer.ggml.tokens", {"<0xZZ>"});
  byte.integers("tokenizer.ggml.token_type", {6});
  refused(byte, "calls token 0 a byte, but it is written <0xZZ>");
}

TEST("ids of special tokens outside of the vocabulary count as none") {
  test::Random random;
  GgufWriter file;
  add_keys(file, {}, random);
  file.integer("tokenizer.ggml.bos_token_id", 300);
  file.integer("tokenizer.ggml.eos_token_id", 4000000000u);
  auto read = vocabulary_of(file);
  REQUIRE(read.ok(), read.message());
  CHECK_EQUAL(read.value().bos, -1);
  CHECK_EQUAL(read.value().eos, -1);
  CHECK(read.value().stops.empty());
}
