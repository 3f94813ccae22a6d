// The tokenizer's data as the model's file has it, and each token's text. Turning text into tokens is the origin's business.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model_file.h"
#include "status.h"

namespace millrace {

enum class TokenType : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Vocabulary {
  std::string kind;           // "gpt2": byte-level BPE; "llama": SentencePiece; "none": token ids alone
  std::string pre_tokenizer;  // e.g. "smollm"
  std::vector<std::string> tokens;
  std::vector<int32_t> types;  // TokenType, one a token
  std::vector<float> scores;   // one a token, or none
  std::vector<std::string> merges;
  std::string chat_template;
  std::string tokenizer_json;  // Hugging Face's tokenizer.json, or nothing: then what is above makes the tokenizer
  int32_t bos = -1, eos = -1, unknown = -1;
  bool add_bos = false, add_space_prefix = false;

  std::vector<int32_t> stops;      // tokens that end an answer, ascending
  std::vector<std::string> bytes;  // each token's bytes in an answer; none for control tokens
};

// Whether a SentencePiece token stands for one byte: <0x00> to <0xFF>.
bool is_byte_token(const std::string& token);

Result<Vocabulary> read_vocabulary(const ModelFile& file);

}  // namespace millrace
