#include "tiny_model.h"

#include <bit>
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

// How random bytes of a block are turned into values of a wanted deviation: its halves get a scale of deviation / spread, and a
// minimum of so many scales.
struct Shape {
  int scale_at;
  float spread;         // deviation of a value in units of the scale
  int minimum_at = -1;
  float minimum = 0;    // in units of the scale
};

Shape shape_of(Type type) {
  switch (type) {
    case Type::q4_0:
      return {0, 4.6f};
    case Type::q4_1:
      return {0, 4.6f, 2, -7.5f};
    case Type::q5_0:
      return {0, 9.2f};
    case Type::q5_1:
      return {0, 9.2f, 2, -15.5f};
    case Type::q2_k:
      return {80, 12, 82, 1.5f};
    case Type::q3_k:
      return {108, 45};
    case Type::q4_k:
      return {0, 200, 2, 7.5f};
    case Type::q5_k:
      return {0, 400, 2, 15.5f};
    case Type::q6_k:
      return {208, 1350};
    case Type::iq4_nl:
      return {0, 66};
    case Type::iq4_xs:
      return {0, 1220};
    default:
      return {0, 73};  // Q8_0
  }
}

}  // namespace

std::string random_values(Random& random, Type type, int64_t count, float scale) {
  std::string bytes;
  for (int64_t done = 0; done < count; done += values_a_block(type)) {
    if (type == Type::f32) {
      put_block(bytes, random.normal() * scale);
    } else if (type == Type::f16) {
      put_block(bytes, float_to_half(random.normal() * scale));
    } else if (type == Type::bf16) {
      put_block(bytes, static_cast<uint16_t>(std::bit_cast<uint32_t>(random.normal() * scale) >> 16));
    } else {
      std::string block(static_cast<size_t>(bytes_a_block(type)), '\0');
      for (char& byte : block) byte = static_cast<char>(random.next());
      if (type == Type::mxfp4) {
        // 2^(exponent - 128) times values that deviate by about 5.
        block[0] = static_cast<char>(128 + std::lround(std::log2(scale / 5)));
      } else {
        const Shape shape = shape_of(type);
        const float step = scale / shape.spread * (0.5f + static_cast<float>(random.uniform()));
        const auto put_half = [&](int at, float value) {
          const uint16_t half = float_to_half(value);
          std::memcpy(&block[static_cast<size_t>(at)], &half, sizeof(half));
        };
        put_half(shape.scale_at, step);
        if (shape.minimum_at >= 0) put_half(shape.minimum_at, step * (shape.minimum + 0.3f * random.normal()));
      }
      bytes += block;
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
  const auto matrix_of = [&](Type type, const std::string& name, int rows, int columns) {
    const float scale = 1 / std::sqrt(static_cast<float>(columns));
    file.tensor(name, static_cast<uint32_t>(type), {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)}, random_values(random, type, int64_t{rows} * columns, scale));
  };
  const auto matrix = [&](const std::string& name, int rows, int columns) { matrix_of(shape.type, name, rows, columns); };
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
    matrix_of(shape.down.value_or(shape.type), block + "attn_v.weight", shape.kv_heads * shape.head_dim, shape.hidden);
    matrix(block + "attn_output.weight", shape.hidden, shape.heads * shape.head_dim);
    norm(block + "ffn_norm.weight");
    matrix(block + "ffn_gate.weight", shape.ffn, shape.hidden);
    matrix(block + "ffn_up.weight", shape.ffn, shape.hidden);
    matrix_of(shape.down.value_or(shape.type), block + "ffn_down.weight", shape.hidden, shape.ffn);
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
