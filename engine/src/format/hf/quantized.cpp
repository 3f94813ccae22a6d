#include "quantized.h"

#include <cstring>

#include "../../base/text.h"
#include "fp8.h"
#include "packed_int.h"

namespace millrace {
namespace {

const StoredTensor* find(const Parameters& parameters, const char* name) {
  const auto found = parameters.find(name);
  return found == parameters.end() ? nullptr : found->second;
}

Result<HfQuantization> read_compressed_tensors(const Json& config) {
  HfQuantization quantization{.method = "compressed-tensors"};
  const Json::Object* groups = config["config_groups"].object();
  if (groups == nullptr || groups->empty()) return Status::error("is quantized by compressed-tensors without config_groups");
  for (const auto& [name, group] : *groups) {
    const Json& weights = group["weights"];
    const std::string* type = weights["type"].string();
    const std::string* strategy = weights["strategy"].string();
    const int bits = static_cast<int>(weights["num_bits"].integer().value_or(0));
    const bool fp8 = type && *type == "float" && bits == 8, packed = type && *type == "int" && (bits == 4 || bits == 8);
    if (!fp8 && !packed) return Status::error(text("is quantized by compressed-tensors to ", bits, " bits of ", type ? *type : "nothing", "; 8 bits of float and 4 or 8 of int are read"));
    quantization.bits = bits;
    if (strategy && *strategy == "block") {
      const Json::Array* block = weights["block_structure"].array();
      if (block == nullptr || block->size() != 2) return Status::error("is quantized in blocks without a block_structure");
      quantization.block_rows = (*block)[0].integer().value_or(0);
      quantization.block_columns = (*block)[1].integer().value_or(0);
    }
  }
  return quantization;
}

// gpt-oss: rows of blocks of 32 values in 16 bytes with an exponent each. Byte i holds values 2i and 2i + 1, where GGUF's has i and i + 16.
Result<FileTensor> read_mxfp4(const StoredTensor& blocks, const StoredTensor& scales, ModelFile& model) {
  if (blocks.dtype != "U8" || scales.dtype != "U8" || blocks.shape.size() < 3 || blocks.shape.back() != 16 || blocks.values() != 16 * scales.values())
    return Status::error("has MXFP4 blocks of another shape than [rows][blocks][16] with [rows][blocks] of scales");
  FileTensor tensor;
  tensor.type = Type::mxfp4;
  const size_t dimensions = blocks.shape.size();
  tensor.shape[0] = blocks.shape[dimensions - 2] * block_values;
  for (size_t d = 0; d + 2 < dimensions && d < 3; d++) tensor.shape[d + 1] = blocks.shape[dimensions - 3 - d];
  const size_t count = static_cast<size_t>(scales.values());
  auto* out = reinterpret_cast<BlockMXFP4*>(model.allocate(count * sizeof(BlockMXFP4)));
  for (size_t b = 0; b < count; b++) {
    const uint8_t* pairs = blocks.bytes.data() + 16 * b;
    const auto value = [&](int i) { return (pairs[i / 2] >> (i % 2 * 4)) & 15; };
    out[b].exponent = scales.bytes[b];
    for (int i = 0; i < 16; i++) out[b].nibbles[i] = static_cast<uint8_t>(value(i) | value(i + 16) << 4);
  }
  tensor.bytes = reinterpret_cast<const uint8_t*>(out);
  return tensor;
}

}  // namespace

Result<HfQuantization> read_quantization(const Json& config) {
  HfQuantization quantization;
  if (config.is_null()) return quantization;
  const std::string* method = config["quant_method"].string();
  quantization.method = method ? *method : "";
  if (quantization.method == "compressed-tensors") return read_compressed_tensors(config);
  if (quantization.method == "mxfp4") return quantization;
  if (quantization.method == "fp8") {
    if (const Json::Array* block = config["weight_block_size"].array(); block && block->size() == 2) {
      quantization.block_rows = (*block)[0].integer().value_or(0);
      quantization.block_columns = (*block)[1].integer().value_or(0);
    }
    return quantization;
  }
  if (quantization.method != "gptq" && quantization.method != "awq")
    return Status::error("is quantized by \"" + quantization.method + "\", which is not read; fp8, gptq, awq, compressed-tensors and mxfp4 are");
  quantization.bits = static_cast<int>(config["bits"].integer().value_or(0));
  const bool awq = quantization.method == "awq";
  if (quantization.bits != 4 && (awq || quantization.bits != 8))
    return Status::error(text("is quantized by ", quantization.method, " to ", quantization.bits, " bits; ", awq ? "4" : "4 and 8", " are read"));
  if (const std::string* version = config["version"].string(); awq && version && *version != "gemm" && *version != "GEMM")
    return Status::error("is quantized by awq's version \"" + *version + "\"; gemm is read");
  if (const std::string* format = config["checkpoint_format"].string()) quantization.zeros_less_one = *format != "gptq_v2";
  return quantization;
}

bool is_quantized(const Parameters& parameters) {
  for (const char* name : {"weight_scale", "weight_scale_inv", "qweight", "weight_packed", "blocks"})
    if (find(parameters, name)) return true;
  return false;
}

Result<FileTensor> dequantized(const HfQuantization& quantization, const Parameters& parameters, ModelFile& model) {
  if (quantization.method.empty()) return Status::error("is quantized, but config.json has no quantization_config");
  if (const StoredTensor* blocks = find(parameters, "blocks")) {
    const StoredTensor* scales = find(parameters, "scales");
    return scales ? read_mxfp4(*blocks, *scales, model) : Result<FileTensor>(Status::error("has MXFP4 blocks without scales"));
  }
  if (quantization.method == "gptq") return read_gptq(quantization, parameters);
  if (quantization.method == "awq") return read_awq(quantization, parameters);
  if (find(parameters, "weight_packed")) return read_packed(quantization, parameters);
  return read_fp8(quantization, parameters);
}

Result<FileTensor> plain(const StoredTensor& stored, ModelFile& model) {
  FileTensor tensor;
  if (stored.dtype == "F32")
    tensor.type = Type::f32;
  else if (stored.dtype == "F16")
    tensor.type = Type::f16;
  else if (stored.dtype == "BF16")
    tensor.type = Type::bf16;
  else
    return Status::error("has values of type " + stored.dtype + " where F32, F16 or BF16 are read");
  const size_t dimensions = stored.shape.size();
  if (dimensions < 1 || dimensions > 3 || stored.values() == 0) return Status::error(text("has ", dimensions, " dimensions and ", stored.values(), " values"));
  for (size_t d = 0; d < dimensions; d++) tensor.shape[d] = stored.shape[dimensions - 1 - d];
  tensor.bytes = stored.bytes.data();
  if (reinterpret_cast<uintptr_t>(tensor.bytes) % static_cast<size_t>(bytes_a_block(tensor.type)) != 0) {
    uint8_t* copy = model.allocate(stored.bytes.size());
    std::memcpy(copy, stored.bytes.data(), stored.bytes.size());
    tensor.bytes = copy;
  }
  return tensor;
}

Result<std::vector<float>> floats_of(const StoredTensor& stored) {
  const size_t count = static_cast<size_t>(stored.values());
  std::vector<float> values(count);
  if (stored.dtype == "F32") {
    std::memcpy(values.data(), stored.bytes.data(), count * sizeof(float));
    return values;
  }
  if (stored.dtype != "F16" && stored.dtype != "BF16") return Status::error("has scales of type " + stored.dtype + "; F32, F16 and BF16 are read");
  for (size_t i = 0; i < count; i++) {
    uint16_t half;
    std::memcpy(&half, &stored.bytes[2 * i], sizeof(half));
    values[i] = stored.dtype == "F16" ? half_to_float(half) : bfloat_to_float(half);
  }
  return values;
}

}  // namespace millrace
