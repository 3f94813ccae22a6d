#include "weights.h"

#include <cstring>
#include <memory>

#include "../../base/text.h"

namespace millrace {
namespace {

constexpr int experts_max = 1 << 12;

// One module of the checkpoint: a matrix, a norm, all of an expert's gate.
struct Module {
  std::string path;  // in the checkpoint
  std::string name;  // in GGUF
  int expert = -1;
  Parameters parameters;
};

// Parameters that say how activations or the cache were quantized, which we do otherwise.
bool is_ignored(const std::string& tensor, bool tied) {
  for (const char* end : {".rotary_emb.inv_freq", ".input_scale", ".k_scale", ".v_scale", ".output_scale"})
    if (tensor.ends_with(end)) return true;
  return tied && tensor == "lm_head.weight";
}

Result<std::map<std::string, Module>> gather_modules(const HfArchitecture& architecture, const Json& config, const StoredTensors& stored) {
  const bool tied = config["tie_word_embeddings"].boolean().value_or(architecture.adds_one_to_norms || std::string(architecture.name) == "falcon");
  std::map<std::string, Module> modules;
  for (const auto& [tensor, value] : stored) {
    if (is_ignored(tensor, tied)) continue;
    const ParameterName parts = take_apart(architecture, tensor);
    if (parts.name.empty()) return Status::error(text("has the tensor ", tensor, ", which a ", architecture.model_type, " does not have here"));
    if (parts.expert >= experts_max) return Status::error(text("has the tensor ", tensor, " of more than ", experts_max, " experts"));
    Module& module = modules[parts.module];
    module.path = parts.module;
    module.name = parts.name;
    module.expert = parts.expert;
    module.parameters[parts.parameter] = &value;
  }
  return modules;
}

// Rows of several tensors in any order, as one: `place_of` says which row of which. They lie where they lie.
FileTensor gather_rows(std::vector<FileTensor> parts, std::array<int64_t, 4> shape, const std::function<std::pair<size_t, int64_t>(int64_t)>& place_of) {
  FileTensor all = parts[0];
  all.shape = shape;
  all.places.clear();
  if (all.type != Type::derived) {
    for (int64_t row = 0; row < all.rows(); row++) {
      const auto [part, own] = place_of(row);
      all.places.push_back(parts[part].row(own));
    }
    all.bytes = nullptr;
    return all;
  }
  all.derive = [parts, place_of](int64_t row, float* values) {
    const auto [part, own] = place_of(row);
    parts[part].derive(own, values);
  };
  const bool are_e4m3 = std::all_of(parts.begin(), parts.end(), [](const FileTensor& part) { return part.e4m3 != nullptr; });
  all.e4m3 = nullptr;
  if (are_e4m3)
    all.e4m3 = [parts = std::move(parts), place_of](int64_t row) {
      const auto [part, own] = place_of(row);
      return parts[part].e4m3(own);
    };
  return all;
}

class WeightReader {
 public:
  WeightReader(const HfArchitecture& architecture, const HfQuantization& quantization, const Json& config, ModelFile& model)
      : architecture_(architecture), quantization_(quantization), config_(config), model_(model) {}

  Status read(const std::map<std::string, Module>& modules) {
    for (const auto& [path, module] : modules)
      if (Status status = add(module); !status.ok()) return Status::error("module " + path + " " + status.message());
    for (auto& [name, parts] : experts_)
      if (Status status = add_experts(name, std::move(parts)); !status.ok()) return status;
    return Status();
  }

 private:
  Status add(const Module& module) {
    if (module.name.ends_with("ffn_gate_up_exps") || (module.name.ends_with("_exps") && module.expert < 0)) return add_joint_experts(module);
    auto weight = read_weight(module);
    if (!weight.ok()) return weight.status();
    if (module.expert >= 0) {
      if (module.parameters.contains("bias")) return Status::error("has a bias, which experts of this architecture do not have");
      experts_[module.name].emplace(module.expert, weight.take());
      return Status();
    }
    FileTensor tensor = weight.take();
    if (architecture_.adds_one_to_norms && module.name.ends_with("norm")) tensor = plus_one(tensor);
    if (std::string(architecture_.model_type) == "falcon" && module.name.ends_with("attn_qkv")) {
      auto ordered = order_falcon(std::move(tensor));
      if (!ordered.ok()) return ordered.status();
      tensor = ordered.take();
    }
    if (Status status = put(module.name + ".weight", std::move(tensor)); !status.ok()) return status;
    const auto bias = module.parameters.find("bias");
    if (bias == module.parameters.end()) return Status();
    auto values = plain(*bias->second, model_);
    return values.ok() ? put(module.name + ".bias", values.take()) : values.status();
  }

  Result<FileTensor> read_weight(const Module& module) {
    if (is_quantized(module.parameters)) return dequantized(quantization_, module.parameters, model_);
    const auto weight = module.parameters.find("weight");
    for (const auto& [name, value] : module.parameters)
      if (name != "weight" && name != "bias") return Status::error("has a parameter " + name + ", which is not read");
    if (weight == module.parameters.end()) return Status::error("lacks its weight");
    return plain(*weight->second, model_);
  }

  Status put(const std::string& name, FileTensor tensor) {
    tensor.name = name;
    return model_.add(std::move(tensor)) ? Status() : Status::error("is " + name + ", which another module is too");
  }

  FileTensor plus_one(const FileTensor& norm) {
    FileTensor sum = norm;
    float* values = reinterpret_cast<float*>(model_.allocate(static_cast<size_t>(norm.columns()) * sizeof(float)));
    read_row(norm, 0, values);
    for (int64_t i = 0; i < norm.columns(); i++) values[i] += 1;
    sum.type = Type::f32;
    sum.e4m3 = nullptr;
    sum.bytes = reinterpret_cast<const uint8_t*>(values);
    return sum;
  }

  // Falcon has q, k and v of each group of heads together; GGUF has all of q, then k, then v.
  Result<FileTensor> order_falcon(FileTensor qkv) const {
    const auto integer = [&](const char* key) { return config_[key].integer().value_or(0); };
    const int64_t heads = integer("num_attention_heads"), hidden = integer("hidden_size");
    const bool grouped = config_["new_decoder_architecture"].boolean().value_or(false);
    const int64_t kv_heads = grouped ? integer("num_kv_heads") : 1;
    if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || hidden % heads != 0) return Status::error("has heads that do not divide its width");
    const int64_t dim = hidden / heads, group = heads / kv_heads;
    if (qkv.rows() != (heads + 2 * kv_heads) * dim) return Status::error(text("has ", qkv.rows(), " rows for ", heads, " heads and ", kv_heads, " KV heads of ", dim));
    const std::array<int64_t, 4> shape = qkv.shape;
    return gather_rows({std::move(qkv)}, shape, [=](int64_t row) -> std::pair<size_t, int64_t> {
      const int64_t head = row / dim, inside = row % dim;
      if (head < heads) return {0, (head / group * (group + 2) + head % group) * dim + inside};
      const int64_t kv = (head - heads) % kv_heads, is_v = (head - heads) / kv_heads;
      return {0, (kv * (group + 2) + group + is_v) * dim + inside};
    });
  }

  Status add_experts(const std::string& name, std::map<int, FileTensor> parts) {
    std::vector<FileTensor> experts;
    for (auto& [number, tensor] : parts) {
      if (number != static_cast<int>(experts.size())) return Status::error(text("lacks expert ", experts.size(), " of ", name));
      if (!experts.empty() && (tensor.shape != experts[0].shape || tensor.type != experts[0].type)) return Status::error("has experts of different shapes or types under " + name);
      experts.push_back(std::move(tensor));
    }
    const int64_t rows = experts[0].rows();
    const std::array<int64_t, 4> shape = {experts[0].columns(), rows, static_cast<int64_t>(experts.size()), 1};
    return put(name + ".weight", gather_rows(std::move(experts), shape, [rows](int64_t row) -> std::pair<size_t, int64_t> { return {static_cast<size_t>(row / rows), row % rows}; }));
  }

  // gpt-oss has all experts in one tensor: in MXFP4 by rows of outputs, otherwise [expert][inputs][outputs]; gate and up take turns.
  Status add_joint_experts(const Module& module) {
    auto read = read_weight_of_joint(module);
    if (!read.ok()) return read.status();
    const FileTensor weight = read.take();
    FileTensor bias;
    if (const auto found = module.parameters.find("bias"); found != module.parameters.end()) {
      auto values = plain(*found->second, model_);
      if (!values.ok()) return values.status();
      bias = values.take();
    }
    if (!module.name.ends_with("ffn_gate_up_exps")) {
      if (Status status = put(module.name + ".weight", weight); !status.ok() || bias.bytes == nullptr) return status;
      return put(module.name + ".bias", bias);
    }
    for (const int64_t half : {0, 1}) {
      std::string name = module.name;
      name.replace(name.find("gate_up"), 7, half == 0 ? "gate" : "up");
      const std::array<int64_t, 4> shape = {weight.shape[0], weight.shape[1] / 2, weight.shape[2], 1};
      if (Status status = put(name + ".weight", gather_rows({weight}, shape, [half](int64_t row) -> std::pair<size_t, int64_t> { return {0, 2 * row + half}; })); !status.ok())
        return status;
      if (bias.bytes == nullptr) continue;
      if (Status status = put(name + ".bias", every_second(bias, half)); !status.ok()) return status;
    }
    return Status();
  }

  Result<FileTensor> read_weight_of_joint(const Module& module) {
    auto read = read_weight(module);
    if (!read.ok() || is_quantized(module.parameters)) return read;
    const FileTensor stored = read.take();  // [expert][inputs][outputs]
    FileTensor turned = stored;
    const int64_t inputs = stored.shape[1], outputs = stored.shape[0];
    turned.type = Type::derived;
    turned.kind = name_of(static_cast<uint32_t>(stored.type)) + " of transposed experts";
    turned.shape = {inputs, outputs, stored.shape[2], 1};
    turned.bytes = nullptr;
    turned.derive = [stored, inputs, outputs](int64_t row, float* values) {
      const int64_t width = bytes_a_block(stored.type), expert = row / outputs;
      for (int64_t c = 0; c < inputs; c++) dequantize(stored.type, stored.bytes + ((expert * inputs + c) * outputs + row % outputs) * width, 1, values + c);
    };
    return turned;
  }

  // Columns `first`, `first` + 2, ... of each row, in float32.
  FileTensor every_second(const FileTensor& tensor, int64_t first) {
    const int64_t columns = tensor.columns() / 2;
    float* values = reinterpret_cast<float*>(model_.allocate(static_cast<size_t>(tensor.rows() * columns) * sizeof(float)));
    std::vector<float> row_values(static_cast<size_t>(tensor.columns()));
    for (int64_t row = 0; row < tensor.rows(); row++) {
      read_row(tensor, row, row_values.data());
      for (int64_t c = 0; c < columns; c++) values[row * columns + c] = row_values[static_cast<size_t>(2 * c + first)];
    }
    FileTensor half = tensor;
    half.type = Type::f32;
    half.e4m3 = nullptr;
    half.shape[0] = columns;
    half.bytes = reinterpret_cast<const uint8_t*>(values);
    return half;
  }

  const HfArchitecture& architecture_;
  const HfQuantization& quantization_;
  const Json& config_;
  ModelFile& model_;
  std::map<std::string, std::map<int, FileTensor>> experts_;  // by GGUF's name of all of them
};

}  // namespace

Status add_weights(const HfArchitecture& architecture, const HfQuantization& quantization, const Json& config, const StoredTensors& stored, ModelFile& model) {
  auto modules = gather_modules(architecture, config, stored);
  if (!modules.ok()) return modules.status();
  return WeightReader(architecture, quantization, config, model).read(modules.value());
}

}  // namespace millrace
