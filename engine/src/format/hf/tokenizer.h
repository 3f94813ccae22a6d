// tokenizer.json, tokenizer_config.json and generation_config.json as GGUF's metadata: each token's text and kind, which end an answer,
// the chat template. Turning text into tokens is the origin's business, which gets tokenizer.json as it is.
#pragma once

#include <string>

#include "../json.h"
#include "../model_file.h"
#include "status.h"

namespace millrace {

// What tokenizer.json says, whole, where the model came with one.
constexpr char tokenizer_json_key[] = "tokenizer.huggingface.json";
// Ids that end an answer, beside those that GGUF has keys for.
constexpr char stop_tokens_key[] = "millrace.stop_tokens";

// A directory without tokenizer.json gets a vocabulary of kind "none", which takes and gives token ids alone.
Status set_tokenizer(const std::string& path, const Json& config, ModelFile& model);

}  // namespace millrace
