#include "names.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <tuple>

namespace millrace {
namespace {

const std::vector<NameRule> shared_rules = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
    {"model.layers.{}.input_layernorm", "blk.{}.attn_norm"},
    {"model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"},
    {"model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"},
    {"model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"},
    {"model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
    {"model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"},
    {"model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"},
    {"model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
    {"model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"},
    {"model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"},
    {"model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"},
};

const std::vector<NameRule> norms_after = {
    {"model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"},
    {"model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"},
    {"model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"},
};

const std::array architectures = {
    HfArchitecture{"llama", "llama", 1e-6, 10000, false, {}},
    HfArchitecture{"mistral", "llama", 1e-6, 10000, false, {}},
    HfArchitecture{"qwen2", "qwen2", 1e-6, 10000, false, {}},
    HfArchitecture{"qwen3", "qwen3", 1e-6, 10000, false, {}},
    HfArchitecture{"gemma2", "gemma2", 1e-6, 10000, true, norms_after},
    HfArchitecture{"gemma3_text", "gemma3", 1e-6, 1000000, true, norms_after},
    HfArchitecture{"olmo2", "olmo2", 1e-5, 10000, false, norms_after},
    HfArchitecture{"phi3", "phi3", 1e-5, 10000, false,
                   {{"model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv"}, {"model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"}}},
    HfArchitecture{"mixtral", "llama", 1e-5, 1000000, false,
                   {{"model.layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp"},
                    {"model.layers.{}.block_sparse_moe.experts.{}.w1", "blk.{}.ffn_gate_exps"},
                    {"model.layers.{}.block_sparse_moe.experts.{}.w3", "blk.{}.ffn_up_exps"},
                    {"model.layers.{}.block_sparse_moe.experts.{}.w2", "blk.{}.ffn_down_exps"}}},
    HfArchitecture{"qwen3_moe", "qwen3moe", 1e-6, 10000, false,
                   {{"model.layers.{}.mlp.gate", "blk.{}.ffn_gate_inp"},
                    {"model.layers.{}.mlp.experts.{}.gate_proj", "blk.{}.ffn_gate_exps"},
                    {"model.layers.{}.mlp.experts.{}.up_proj", "blk.{}.ffn_up_exps"},
                    {"model.layers.{}.mlp.experts.{}.down_proj", "blk.{}.ffn_down_exps"}}},
    HfArchitecture{"gpt_oss", "gpt-oss", 1e-5, 150000, false,
                   {{"model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks"},
                    {"model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"},
                    {"model.layers.{}.mlp.router", "blk.{}.ffn_gate_inp"},
                    {"model.layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_gate_up_exps"},
                    {"model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps"}}},
    HfArchitecture{"falcon", "falcon", 1e-5, 10000, false,
                   {{"transformer.word_embeddings", "token_embd"},
                    {"transformer.ln_f", "output_norm"},
                    {"transformer.h.{}.input_layernorm", "blk.{}.attn_norm"},
                    {"transformer.h.{}.ln_mlp", "blk.{}.attn_norm"},
                    {"transformer.h.{}.ln_attn", "blk.{}.attn_norm_2"},
                    {"transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv"},
                    {"transformer.h.{}.self_attention.dense", "blk.{}.attn_output"},
                    {"transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"},
                    {"transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"}}},
};

// Replaces each component that is a number by `{}` and gives the numbers.
std::string generalize(const std::string& name, std::vector<std::string>& numbers) {
  std::string general;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool number = !part.empty() && part.size() < 7 && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    if (number) numbers.push_back(part);
    general += (begin > 0 ? "." : "") + (number ? std::string("{}") : part);
    begin = end + 1;
  }
  return general;
}

const NameRule* find_rule(const HfArchitecture& architecture, const std::string& module) {
  for (const std::vector<NameRule>* rules : {&architecture.own, &shared_rules})
    for (const NameRule& rule : *rules)
      if (module == rule.module) return &rule;
  return nullptr;
}

// gpt-oss names some parameters without a module of their own: `..._proj_bias` is the bias of `..._proj`, which is a weight by itself.
std::pair<std::string, std::string> split(const HfArchitecture& architecture, const std::string& tensor) {
  std::vector<std::string> ignored;
  if (find_rule(architecture, generalize(tensor, ignored)) != nullptr) return {tensor, "weight"};
  for (const std::string suffix : {"_bias", "_blocks", "_scales"})
    if (tensor.size() > suffix.size() && tensor.ends_with("_proj" + suffix)) return {tensor.substr(0, tensor.size() - suffix.size()), suffix.substr(1)};
  const size_t dot = tensor.rfind('.');
  if (dot == std::string::npos) return {tensor, ""};
  return {tensor.substr(0, dot), tensor.substr(dot + 1)};
}

}  // namespace

const HfArchitecture* find_hf_architecture(const std::string& model_type) {
  const auto found = std::find_if(architectures.begin(), architectures.end(), [&](const HfArchitecture& each) { return model_type == each.model_type; });
  return found == architectures.end() ? nullptr : &*found;
}

std::string hf_model_types() {
  std::string all;
  for (const HfArchitecture& each : architectures) all += (all.empty() ? "" : ", ") + std::string(each.model_type);
  return all;
}

ParameterName take_apart(const HfArchitecture& architecture, const std::string& tensor) {
  ParameterName parts;
  std::tie(parts.module, parts.parameter) = split(architecture, tensor);
  std::vector<std::string> numbers;
  const NameRule* rule = find_rule(architecture, generalize(parts.module, numbers));
  if (rule == nullptr) return parts;
  parts.name = rule->name;
  if (const size_t place = parts.name.find("{}"); place != std::string::npos) parts.name.replace(place, 2, numbers[0]);
  if (numbers.size() > 1) parts.expert = std::stoi(numbers[1]);
  return parts;
}

}  // namespace millrace
