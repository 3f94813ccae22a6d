#include "tiny_model.h"

#include <cmath>
#include <cstring>

namespace millrace::test {
namespace {

std::string utf8(uint32_t point) {
  if (point < 0x80) return std::string(1, static_cast<char>(point));
  return {static_cast<char>(0xc0 | (point >> 6)), static_cast<char>(0x80 | (point & 0x3f))};
}

// A byte as byte-level BPE writes it: printable ones as themselves, the others in order from 256 up.
std::string written_byte(int byte) {
  const auto printable = [](int b) { return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae; };
  if (printable(byte)) return utf8(static_cast<uint32_t>(byte));
  uint32_t point = 256;
  for (int before = 0; before < byte; before++) point += printable(before) ? 0 : 1;
  return utf8(point);
}

template <typename Block>
void put_block(std::string& bytes, const Block& block) {
  bytes.append(reinterpret_cast<const char*>(&block), sizeof(block));
}

}  // namespace

std::string random_values(Random& random, Type type, int64_t count, float scale) {
  std::string bytes;
  const auto half = [](float value) { return float_to_half(value); };
  // A random nibble deviates by 4.6 from its middle, a random byte by 73.
  const auto block_scale = [&](float spread) { return half(scale / spread * (0.5f + static_cast<float>(random.uniform()))); };
  for (int64_t done = 0; done < count; done += values_a_block(type)) switch (type) {
      case Type::f32:
        put_block(bytes, random.normal() * scale);
        break;
      case Type::f16:
        put_block(bytes, half(random.normal() * scale));
        break;
      case Type::bf16: {
        const float value = random.normal() * scale;
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        put_block(bytes, static_cast<uint16_t>(bits >> 16));
        break;
      }
      case Type::q4_0: {
        BlockQ4_0 block{block_scale(4.6f), {}};
        for (uint8_t& pair : block.nibbles) pair = static_cast<uint8_t>(random.next());
        put_block(bytes, block);
        break;
      }
      case Type::q4_1: {
        const uint16_t step = block_scale(4.6f);
        BlockQ4_1 block{step, half(-7.5f * half_to_float(step) + 0.1f * scale * random.normal()), {}};
        for (uint8_t& pair : block.nibbles) pair = static_cast<uint8_t>(random.next());
        put_block(bytes, block);
        break;
      }
      case Type::q8_0: {
        BlockQ8_0 block{block_scale(73), {}};
        for (int8_t& quant : block.quants) quant = static_cast<int8_t>(random.next());
        put_block(bytes, block);
        break;
      }
    }
  return bytes;
}

std::vector<std::string> tiny_vocabulary(const TinyShape& shape, Random& random) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; byte++) tokens.push_back(written_byte(byte));
  while (static_cast<int>(tokens.size()) < shape.vocabulary)
    tokens.push_back({static_cast<char>(random.between('a', 'z')), static_cast<char>(random.between('a', 'z'))});
  if (shape.end_token) tokens.back() = "<|im_end|>";
  return tokens;
}

void add_keys(GgufWriter& file, const TinyShape& shape, Random& random) {
  const auto count = [&](const char* key, int value) { file.integer(key, static_cast<uint32_t>(value)); };
  file.text("general.architecture", "llama");
  file.text("general.name", "tiny");
  count("llama.block_count", shape.layers);
  count("llama.embedding_length", shape.hidden);
  count("llama.feed_forward_length", shape.ffn);
  count("llama.attention.head_count", shape.heads);
  count("llama.attention.head_count_kv", shape.kv_heads);
  count("llama.attention.key_length", shape.head_dim);
  count("llama.context_length", shape.context);
  file.number("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.number("llama.rope.freq_base", 10000);
  file.text("tokenizer.ggml.model", "gpt2");
  file.texts("tokenizer.ggml.tokens", tiny_vocabulary(shape, random));
  std::vector<int32_t> types(static_cast<size_t>(shape.vocabulary), 1);
  if (shape.end_token) types.back() = 3;
  file.integers("tokenizer.ggml.token_type", types);
}

void add_tensors(GgufWriter& file, const TinyShape& shape, Random& random) {
  const auto matrix = [&](const std::string& name, int rows, int columns) {
    const float scale = 1 / std::sqrt(static_cast<float>(columns));
    file.tensor(name, static_cast<uint32_t>(shape.type), {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
                random_values(random, shape.type, int64_t{rows} * columns, scale));
  };
  const auto norm = [&](const std::string& name) {
    std::vector<float> values = random.normals(shape.hidden);
    for (float& value : values) value = 1 + 0.2f * value;
    file.tensor(name, 0, {static_cast<uint64_t>(shape.hidden)},
                std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  };
  matrix("token_embd.weight", shape.vocabulary, shape.hidden);
  for (int layer = 0; layer < shape.layers; layer++) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    norm(block + "attn_norm.weight");
    matrix(block + "attn_q.weight", shape.heads * shape.head_dim, shape.hidden);
    matrix(block + "attn_k.weight", shape.kv_heads * shape.head_dim, shape.hidden);
    matrix(block + "attn_v.weight", shape.kv_heads * shape.head_dim, shape.hidden);
    matrix(block + "attn_output.weight", shape.hidden, shape.heads * shape.head_dim);
    norm(block + "ffn_norm.weight");
    matrix(block + "ffn_gate.weight", shape.ffn, shape.hidden);
    matrix(block + "ffn_up.weight", shape.ffn, shape.hidden);
    matrix(block + "ffn_down.weight", shape.hidden, shape.ffn);
  }
  norm("output_norm.weight");
  if (!shape.tied) matrix("output.weight", shape.vocabulary, shape.hidden);
}

std::string tiny_model(const TinyShape& shape, Random& random) {
  GgufWriter file;
  add_keys(file, shape, random);
  add_tensors(file, shape, random);
  return file.bytes();
}

}  // namespace millrace::test
