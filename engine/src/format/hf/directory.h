// A directory as Hugging Face's transformers writes it: config.json, safetensors in one file or several, tokenizer.json,
// tokenizer_config.json, generation_config.json.
#pragma once

#include <memory>
#include <string>

#include "../model_file.h"
#include "status.h"

namespace millrace {

Result<std::unique_ptr<ModelFile>> read_hf_directory(const std::string& path);

}  // namespace millrace
