// Quantized weights of Hugging Face checkpoints, each as a tensor whose rows are computed: FP8 with scales per tensor, per channel or per
// block; GPTQ, AWQ and compressed-tensors' packed integers; gpt-oss's MXFP4, which becomes GGUF's.
#pragma once

#include <map>
#include <string>

#include "../json.h"
#include "../model_file.h"
#include "safetensors.h"
#include "status.h"

namespace millrace {

// A module's parameters by their own names, e.g. "weight" and "weight_scale".
using Parameters = std::map<std::string, const StoredTensor*>;

// config.json's quantization_config, as far as it says how weights are stored.
struct HfQuantization {
  std::string method;                      // "" where there is none
  int bits = 4;                            // of packed integers
  int64_t block_rows = 0, block_columns = 0;  // that share a scale of FP8; 0: by the scales' shape
  bool zeros_less_one = true;              // GPTQ stores zero points less 1, but for its second version
};

// Refuses by name what is not read.
Result<HfQuantization> read_quantization(const Json& config);

// Whether these are what this quantization makes of one matrix.
bool is_quantized(const Parameters& parameters);
// The matrix, nameless. Memory that it needs is the model's. The error says what is wrong, without the module's name.
Result<FileTensor> dequantized(const HfQuantization& quantization, const Parameters& parameters, ModelFile& model);

// A plain tensor as it is stored, nameless; its bytes are copied only where they are not aligned.
Result<FileTensor> plain(const StoredTensor& stored, ModelFile& model);

// The values of F32, F16 or BF16 scales.
Result<std::vector<float>> floats_of(const StoredTensor& stored);

}  // namespace millrace
