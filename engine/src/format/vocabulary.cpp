#include "vocabulary.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "../base/text.h"
#include "hf/tokenizer.h"

namespace millrace {
namespace {

// Byte-level BPE writes each byte as a code point: printable bytes as themselves, the others from 256 up in order (GPT-2).
std::unordered_map<uint32_t, uint8_t> byte_of_code_point() {
  std::unordered_map<uint32_t, uint8_t> bytes;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; byte++) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    bytes.emplace(printable ? byte : next++, static_cast<uint8_t>(byte));
  }
  return bytes;
}

// The code point at `at`, which moves behind it. Bytes that are not UTF-8 come out one by one.
uint32_t next_code_point(const std::string& text, size_t& at) {
  const auto byte = [&](size_t index) { return index < text.size() ? static_cast<uint8_t>(text[index]) : 0u; };
  const uint32_t lead = byte(at);
  const int length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (length == 1 || at + length > text.size()) return at++, lead;
  uint32_t point = lead & (0x7f >> length);
  for (int i = 1; i < length; i++) point = (point << 6) | (byte(at + i) & 0x3f);
  at += length;
  return point;
}

std::string bytes_of_gpt2(const std::string& token) {
  static const std::unordered_map<uint32_t, uint8_t> byte_of = byte_of_code_point();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const size_t begin = at;
    const auto found = byte_of.find(next_code_point(token, at));
    if (found != byte_of.end())
      bytes += static_cast<char>(found->second);
    else
      bytes += token.substr(begin, at - begin);  // added tokens are written as they are
  }
  return bytes;
}

std::string bytes_of_sentencepiece(const std::string& token, TokenType type) {
  if (type == TokenType::byte && token.size() == 6) return std::string(1, static_cast<char>(std::stoi(token.substr(3, 2), nullptr, 16)));
  static const std::string space = "\xe2\x96\x81";
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    if (token.compare(at, space.size(), space) == 0) {
      bytes += ' ';
      at += space.size();
    } else {
      bytes += token[at++];
    }
  }
  return bytes;
}

// Control tokens that end a turn in the templates people use; a file names only one or two of its own.
constexpr std::array turn_ends = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "</s>", "<|end|>"};

std::vector<int32_t> stops_of(const ModelFile& file, const Vocabulary& vocabulary) {
  std::vector<int32_t> stops;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    if (const auto id = file.integer(key); id && *id >= 0 && *id < static_cast<int64_t>(vocabulary.tokens.size()))
      stops.push_back(static_cast<int32_t>(*id));
  for (const double id : file.numbers(stop_tokens_key))
    if (id >= 0 && id < static_cast<double>(vocabulary.tokens.size())) stops.push_back(static_cast<int32_t>(id));
  for (size_t id = 0; id < vocabulary.tokens.size(); id++)
    if (vocabulary.types[id] == static_cast<int32_t>(TokenType::control) &&
        std::find(turn_ends.begin(), turn_ends.end(), vocabulary.tokens[id]) != turn_ends.end())
      stops.push_back(static_cast<int32_t>(id));
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  return stops;
}

}  // namespace

bool is_byte_token(const std::string& token) {
  const auto hexadecimal = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); };
  return token.size() == 6 && token.rfind("<0x", 0) == 0 && token[5] == '>' && hexadecimal(token[3]) && hexadecimal(token[4]);
}

Result<Vocabulary> read_vocabulary(const ModelFile& file) {
  Vocabulary vocabulary;
  vocabulary.kind = file.string("tokenizer.ggml.model").value_or("");
  if (vocabulary.kind != "gpt2" && vocabulary.kind != "llama" && vocabulary.kind != "none")
    return Status::error(text(file.path(), " has a tokenizer of kind \"", vocabulary.kind, "\"; \"gpt2\" and \"llama\" are read"));
  vocabulary.pre_tokenizer = file.string("tokenizer.ggml.pre").value_or("default");
  vocabulary.tokens = file.strings("tokenizer.ggml.tokens");
  vocabulary.merges = file.strings("tokenizer.ggml.merges");
  vocabulary.chat_template = file.string("tokenizer.chat_template").value_or("");
  vocabulary.tokenizer_json = file.string(tokenizer_json_key).value_or("");
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > (1u << 24)) return Status::error(text(file.path(), " has a vocabulary of ", count, " tokens"));
  for (const double type : file.numbers("tokenizer.ggml.token_type"))
    vocabulary.types.push_back(type >= 1 && type <= 6 ? static_cast<int32_t>(type) : 0);
  if (vocabulary.types.empty()) vocabulary.types.assign(count, static_cast<int32_t>(TokenType::normal));
  for (const double score : file.numbers("tokenizer.ggml.scores")) vocabulary.scores.push_back(static_cast<float>(score));
  if (vocabulary.types.size() != count || (!vocabulary.scores.empty() && vocabulary.scores.size() != count))
    return Status::error(text(file.path(), " has ", count, " tokens but ", vocabulary.types.size(), " types and ",
                              vocabulary.scores.size(), " scores"));

  const auto token_id = [&](const char* key) {
    const int64_t id = file.integer(key).value_or(-1);
    return static_cast<int32_t>(id >= 0 && id < static_cast<int64_t>(count) ? id : -1);
  };
  vocabulary.bos = token_id("tokenizer.ggml.bos_token_id");
  vocabulary.eos = token_id("tokenizer.ggml.eos_token_id");
  vocabulary.unknown = token_id("tokenizer.ggml.unknown_token_id");
  const bool sentencepiece = vocabulary.kind == "llama";
  vocabulary.add_bos = file.boolean("tokenizer.ggml.add_bos_token").value_or(sentencepiece);
  vocabulary.add_space_prefix = file.boolean("tokenizer.ggml.add_space_prefix").value_or(sentencepiece);

  vocabulary.bytes.resize(count);
  for (size_t id = 0; id < count; id++) {
    const TokenType type = static_cast<TokenType>(vocabulary.types[id]);
    if (type == TokenType::control || type == TokenType::unused) continue;
    if (type == TokenType::byte && !is_byte_token(vocabulary.tokens[id]))
      return Status::error(text(file.path(), " calls token ", id, " a byte, but it is written ", vocabulary.tokens[id]));
    if (sentencepiece)
      vocabulary.bytes[id] = bytes_of_sentencepiece(vocabulary.tokens[id], type);
    else  // byte-level vocabularies have the tokens that were added to them as they are
      vocabulary.bytes[id] = type == TokenType::user_defined ? vocabulary.tokens[id] : bytes_of_gpt2(vocabulary.tokens[id]);
  }
  vocabulary.stops = stops_of(file, vocabulary);
  return vocabulary;
}

}  // namespace millrace
