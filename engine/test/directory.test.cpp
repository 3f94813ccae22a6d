// Hugging Face directories, right and wrong, down to the safetensors header: whatever one claims, the answer is a sentence.
#include "format/hf/directory.h"

#include <cstring>

#include "format/hf/safetensors.h"
#include "format/vocabulary.h"
#include "support/gguf_writer.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;
using test::TemporaryFile;
using test::TemporaryFolder;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string safetensors(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

std::string header_problem(const std::string& bytes) {
  const TemporaryFile path(bytes);
  auto file = MappedFile::open(path.path());
  REQUIRE(file.ok(), file.message());
  StoredTensors tensors;
  return read_safetensors(file.value(), tensors).message();
}

// The smallest Llama: one layer, matrices of ones.
const std::string config = R"({"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1,
  "max_position_embeddings": 64, "vocab_size": 6, "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": [2, 5]})";

std::string weights(const std::string& rename_from = "", const std::string& rename_to = "") {
  std::string header = "{\"__metadata__\": {\"format\": \"pt\"}", data;
  const auto add = [&](std::string name, int rows, int columns) {
    const size_t bytes = static_cast<size_t>(rows == 0 ? columns : rows * columns) * 2;
    if (name == rename_from) name = rename_to;
    header += ", \"" + name + "\": {\"dtype\": \"BF16\", \"shape\": [" + (rows == 0 ? "" : std::to_string(rows) + ", ") + std::to_string(columns) + "], \"data_offsets\": [" +
              std::to_string(data.size()) + ", " + std::to_string(data.size() + bytes) + "]}";
    for (size_t i = 0; i < bytes / 2; i++) data += "\x80\x3f";
  };
  add("model.embed_tokens.weight", 6, 16);
  add("model.norm.weight", 0, 16);
  add("lm_head.weight", 6, 16);
  const std::string layer = "model.layers.0.";
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) add(layer + norm + ".weight", 0, 16);
  for (const char* matrix : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
    add(layer + matrix + ".weight", 16, 16);
  // A header of odd length puts every tensor at an odd address.
  return safetensors(header + (header.size() % 2 == 0 ? "}" : "} "), data);
}

const std::string tokenizer = R"({"added_tokens": [{"id": 2, "content": "</s>", "special": true}, {"id": 5, "content": "<tool>", "special": false}, {"id": 9, "content": "<image>", "special": true}],
  "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
  "post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>"}}, {"Sequence": {"id": "A"}}]}]},
  "model": {"type": "BPE", "vocab": {"a": 0, "\u0120": 1, "b": 3}, "merges": []}})";

std::string problem_of(const TemporaryFolder& folder) {
  auto model = open_model(folder.path());
  return model.ok() ? "" : model.message();
}

void check_refused(const TemporaryFolder& folder, const std::string& part) {
  const std::string problem = problem_of(folder);
  CHECK(contains(problem, part), "wanted \"", part, "\", got \"", problem, "\"");
}

void fill(const TemporaryFolder& folder) {
  folder.write("config.json", config);
  folder.write("model.safetensors", weights());
  folder.write("tokenizer.json", tokenizer);
}

}  // namespace

TEST("a directory is read under GGUF's keys and names") {
  const TemporaryFolder folder;
  fill(folder);
  folder.write("tokenizer_config.json", R"({"eos_token": {"content": "</s>"}, "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "{{ messages }}"}]})");
  folder.write("generation_config.json", R"({"eos_token_id": [3]})");
  auto opened = open_model(folder.path());
  REQUIRE(opened.ok(), opened.message());
  const std::unique_ptr<ModelFile> model = opened.take();
  CHECK_EQUAL(model->string("general.architecture").value_or(""), std::string("llama"));
  CHECK_EQUAL(model->string(rope_style_key).value_or(""), std::string("halves"));
  CHECK_EQUAL(model->integer("llama.block_count").value_or(0), int64_t{1});
  CHECK_EQUAL(model->tensors().size(), size_t{12});
  const FileTensor* down = model->tensor("blk.0.ffn_down.weight");
  REQUIRE(down != nullptr);
  float values[16];
  read_row(*down, 15, values);
  CHECK_EQUAL(values[15], 1.0f);

  auto read = read_vocabulary(*model);
  REQUIRE(read.ok(), read.message());
  const Vocabulary vocabulary = read.take();
  CHECK_EQUAL(vocabulary.kind, std::string("gpt2"));
  CHECK_EQUAL(vocabulary.bytes, (std::vector<std::string>{"a", " ", "", "b", "", "<tool>"}));
  CHECK_EQUAL(vocabulary.stops, (std::vector<int32_t>{2, 3, 5}));
  CHECK_EQUAL(vocabulary.eos, 2);
  CHECK_EQUAL(vocabulary.bos, 2);
  CHECK(vocabulary.add_bos);
  CHECK_EQUAL(vocabulary.chat_template, std::string("{{ messages }}"));
  CHECK_EQUAL(vocabulary.tokenizer_json, tokenizer);
  folder.write("chat_template.jinja", "of its own");
  auto again = open_model(folder.path());
  REQUIRE(again.ok(), again.message());
  CHECK_EQUAL(read_vocabulary(*again.take()).take().chat_template, std::string("of its own"));
}

TEST("a directory without a tokenizer takes token ids alone") {
  const TemporaryFolder folder;
  fill(folder);
  folder.remove("tokenizer.json");
  auto opened = open_model(folder.path());
  REQUIRE(opened.ok(), opened.message());
  auto read = read_vocabulary(*opened.take());
  REQUIRE(read.ok(), read.message());
  CHECK_EQUAL(read.value().kind, std::string("none"));
  CHECK_EQUAL(read.value().tokens.size(), size_t{6});
  folder.write("tokenizer.model", "x");
  check_refused(folder, "has a tokenizer.model but no tokenizer.json");
}

TEST("a SentencePiece tokenizer falls back to bytes, and other kinds are refused by name") {
  const TemporaryFolder folder;
  fill(folder);
  folder.write("tokenizer.json", R"({"model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": {"<unk>": 0, "<0xE2>": 1, "\u2581a": 2}, "merges": []}})");
  auto opened = open_model(folder.path());
  REQUIRE(opened.ok(), opened.message());
  const Vocabulary vocabulary = read_vocabulary(*opened.take()).take();
  CHECK_EQUAL(vocabulary.kind, std::string("llama"));
  CHECK_EQUAL(vocabulary.bytes[1], std::string("\xe2"));
  CHECK_EQUAL(vocabulary.bytes[2], std::string(" a"));
  CHECK_EQUAL(vocabulary.unknown, 0);
  folder.write("tokenizer.json", R"({"model": {"type": "Unigram", "vocab": []}})");
  check_refused(folder, "is of the type \"Unigram\", which is not read");
  folder.write("tokenizer.json", R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})");
  check_refused(folder, "neither byte-level nor falls back to bytes");
}

TEST("what is missing or wrong in a directory is named") {
  const TemporaryFolder folder;
  check_refused(folder, "is a folder without a config.json");
  folder.write("config.json", "{");
  check_refused(folder, "config.json is not valid JSON");
  folder.write("config.json", R"({"model_type": "mamba"})");
  check_refused(folder, "is a model of the type \"mamba\", which is not read; these are: llama, mistral");
  fill(folder);
  CHECK_EQUAL(problem_of(folder), std::string());
  folder.write("model.safetensors", weights("lm_head.weight", "lm_head.lora_A.weight"));
  check_refused(folder, "has the tensor lm_head.lora_A.weight, which a llama does not have here");
  folder.write("model.safetensors", weights("lm_head.weight", "lm_head.weight_format"));
  check_refused(folder, "module lm_head has a parameter weight_format, which is not read");
  folder.remove("model.safetensors");
  check_refused(folder, "has no model.safetensors");
  folder.write("pytorch_model.bin", "");
  check_refused(folder, "its pytorch_model.bin is not read: convert it to safetensors");
  folder.write("model.safetensors", weights());
  folder.write("config.json", config.substr(0, config.size() - 1) + R"(, "rope_scaling": {"type": "dynamic", "factor": 2}})");
  check_refused(folder, "scales RoPE by \"dynamic\", which this engine does not do");
  folder.write("config.json", config.substr(0, config.size() - 1) + R"(, "quantization_config": {"quant_method": "hqq"}})");
  check_refused(folder, "is quantized by \"hqq\", which is not read");
}

TEST("both spellings of RoPE come to the same keys") {
  const TemporaryFolder folder;
  fill(folder);
  const std::string scaling = R"("factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32)";
  for (const std::string& spelling : {R"(, "rope_theta": 5000.0, "rope_scaling": {"type": "llama3", )" + scaling + "}}",
                                      R"(, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "llama3", )" + scaling + "}}"}) {
    folder.write("config.json", config.substr(0, config.size() - 1) + spelling);
    auto opened = open_model(folder.path());
    REQUIRE(opened.ok(), opened.message());
    const std::unique_ptr<ModelFile> model = opened.take();
    CHECK_EQUAL(model->number("llama.rope.freq_base").value_or(0), 5000.0);
    CHECK_EQUAL(model->string("llama.rope.scaling.type").value_or(""), std::string("llama3"));
    CHECK_EQUAL(model->number("llama.rope.scaling.factor").value_or(0), 8.0);
    CHECK_EQUAL(model->integer("llama.rope.scaling.original_context_length").value_or(0), int64_t{32});
  }
}

TEST("a sharded checkpoint is read whole, and what its index names must be there") {
  const TemporaryFolder folder;
  fill(folder);
  folder.write("one.safetensors", folder.read("model.safetensors"));
  folder.write("two.safetensors", safetensors(R"({"model.layers.0.self_attn.q_proj.bias": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}})", std::string(64, '\0')));
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  auto opened = open_model(folder.path());
  REQUIRE(opened.ok(), opened.message());
  CHECK(opened.take()->tensor("blk.0.attn_q.bias") != nullptr);
  folder.remove("two.safetensors");
  check_refused(folder, "lacks two.safetensors of the 2 files that its index names");
  folder.write("two.safetensors", folder.read("one.safetensors"));
  check_refused(folder, "which another file has too");
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "../one.safetensors"}})");
  check_refused(folder, "names a file outside of its folder");
}

TEST("a safetensors header that lies is refused") {
  const auto refused = [](const std::string& bytes, const std::string& part) {
    const std::string problem = header_problem(bytes);
    CHECK(contains(problem, part), "wanted \"", part, "\", got \"", problem, "\"");
  };
  const auto entry = [](const std::string& fields) { return safetensors("{\"t\": {" + fields + "}}", std::string(16, '\0')); };
  refused("", "claims a header of 0 bytes in a file of 0");
  refused(std::string(8, '\xff'), "claims a header of 18446744073709551615 bytes");
  refused(safetensors("{", ""), "has a header that is not valid JSON");
  refused(safetensors("[]", ""), "is no JSON object");
  refused(entry(""), "lacks its dtype, shape or data_offsets");
  refused(entry(R"("dtype": "F4", "shape": [1], "data_offsets": [0, 1])"), "values of type F4");
  refused(entry(R"("dtype": "F32", "shape": [-1], "data_offsets": [0, 4])"), "impossible shape");
  refused(entry(R"("dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4])"), "impossible shape");
  refused(entry(R"("dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4])"), "9 dimensions");
  refused(entry(R"("dtype": "F32", "shape": [4], "data_offsets": [8, 24])"), "ends at byte 24 of the data, of which there are 16");
  refused(entry(R"("dtype": "F32", "shape": [4], "data_offsets": [8, 4])"), "impossible data_offsets");
  refused(entry(R"("dtype": "F32", "shape": [3], "data_offsets": [0, 16])"), "has 16 bytes where its shape and type call for 12");
  CHECK_EQUAL(header_problem(entry(R"("dtype": "F32", "shape": [4], "data_offsets": [0, 16])")), std::string());
}

TEST("a header damaged at random is read or refused, never more") {
  test::Random random;
  const std::string whole = weights();
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof(length));
  for (int round = 0; round < 2000; round++) {
    std::string bytes = whole;
    for (int damage = random.between(1, 4); damage > 0; damage--)
      bytes[static_cast<size_t>(random.between(0, static_cast<int>(length) + 7))] = random.chance(0.7) ? "0123456789[]{}\",:"[random.between(0, 16)] : static_cast<char>(random.next());
    if (random.chance(0.2)) bytes.resize(static_cast<size_t>(random.between(0, static_cast<int>(bytes.size()))));
    header_problem(bytes);
  }
}
