#include "config.h"

#include <cmath>

#include "../../base/text.h"

namespace millrace {
namespace {

enum class Kind { integer, number };

struct KeyRule {
  const char* from;
  const char* to;
  Kind kind;
};

// Keys that mean the same under another name.
constexpr KeyRule key_rules[] = {
    {"num_hidden_layers", "block_count", Kind::integer},
    {"hidden_size", "embedding_length", Kind::integer},
    {"intermediate_size", "feed_forward_length", Kind::integer},
    {"ffn_hidden_size", "feed_forward_length", Kind::integer},
    {"num_attention_heads", "attention.head_count", Kind::integer},
    {"num_key_value_heads", "attention.head_count_kv", Kind::integer},
    {"head_dim", "attention.key_length", Kind::integer},
    {"head_dim", "attention.value_length", Kind::integer},
    {"max_position_embeddings", "context_length", Kind::integer},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", Kind::number},
    {"layer_norm_epsilon", "attention.layer_norm_epsilon", Kind::number},
    {"attn_logit_softcapping", "attn_logit_softcapping", Kind::number},
    {"final_logit_softcapping", "final_logit_softcapping", Kind::number},
    {"num_local_experts", "expert_count", Kind::integer},
    {"num_experts", "expert_count", Kind::integer},
    {"num_experts_per_tok", "expert_used_count", Kind::integer},
    {"moe_intermediate_size", "expert_feed_forward_length", Kind::integer},
};

class ConfigReader {
 public:
  ConfigReader(const HfArchitecture& architecture, const Json& config, ModelFile& model)
      : architecture_(architecture), config_(config), model_(model), type_(architecture.model_type) {}

  Status read() {
    for (const KeyRule& rule : key_rules) {
      if (rule.kind == Kind::integer && config_[rule.from].integer()) set(rule.to, *config_[rule.from].integer());
      if (rule.kind == Kind::number && config_[rule.from].number()) set(rule.to, *config_[rule.from].number());
    }
    set("attention.layer_norm_rms_epsilon", architecture_.norm_epsilon);
    if (type_.rfind("gemma", 0) == 0) read_gemma();
    if (type_ == "falcon") read_falcon();
    if (type_ == "qwen3_moe") read_qwen3_moe();
    check_activation();
    read_window();
    read_ropes();
    return error_.empty() ? Status() : Status::error(error_);
  }

 private:
  // The first value of a key stays.
  void set(const std::string& key, ModelFile::Value value) { model_.set(std::string(architecture_.name) + "." + key, std::move(value)); }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }

  bool flag(const char* key, bool fallback) const { return config_[key].boolean().value_or(fallback); }

  void read_gemma() {
    for (const char* key : {"head_dim", "query_pre_attn_scalar", "sliding_window"})
      if (!config_[key].number()) return fail(text("has a config.json without ", key));
    set("attention.scale", 1 / std::sqrt(*config_["query_pre_attn_scalar"].number()));
    // Null switches a cap off, which GGUF's silence would not.
    set("attn_logit_softcapping", 0.0);
    set("final_logit_softcapping", 0.0);
    if (flag("use_bidirectional_attention", false)) fail("attends in both directions (use_bidirectional_attention), which this engine does not do");
  }

  void read_falcon() {
    const int64_t heads = config_["num_attention_heads"].integer().value_or(0), hidden = config_["hidden_size"].integer().value_or(0);
    const bool grouped = flag("new_decoder_architecture", false);
    set("attention.head_count_kv", grouped ? config_["num_kv_heads"].integer().value_or(heads) : flag("multi_query", true) ? 1 : heads);
    set("feed_forward_length", 4 * hidden);
    set("context_length", int64_t{2048});
    set("attention.layer_norm_epsilon", 1e-5);
    if (flag("alibi", false)) fail("has ALiBi in place of RoPE, which this engine does not do");
    if (!grouped && !flag("parallel_attn", true)) fail("has its feed-forward behind its attention (parallel_attn is false), which is not the Falcon that this engine has");
    if (flag("bias", false)) fail("has biases, which the Falcons that this engine has do not");
  }

  void read_qwen3_moe() {
    set("expert_weights_norm", flag("norm_topk_prob", false));
    if (config_["decoder_sparse_step"].integer().value_or(1) != 1 || (config_["mlp_only_layers"].array() && !config_["mlp_only_layers"].array()->empty()))
      fail("has layers without experts among those with (decoder_sparse_step, mlp_only_layers), which this engine does not do");
  }

  // An architecture's reader knows one activation; another name means another model.
  void check_activation() {
    const char* key = config_["hidden_activation"].string() ? "hidden_activation" : config_["activation"].string() ? "activation" : "hidden_act";
    const std::string* name = config_[key].string();
    if (name == nullptr) return;
    const std::string expected = type_.rfind("gemma", 0) == 0 ? "gelu_pytorch_tanh" : type_ == "falcon" ? "gelu" : "silu";
    if (*name != expected && !(expected == "silu" && *name == "swish")) fail(text("has the ", key, " \"", *name, "\", where ", type_, " has \"", expected, "\""));
  }

  void read_window() {
    const auto window = config_["sliding_window"].integer();
    if (!window || !flag("use_sliding_window", true)) return;
    const Json::Array* types = config_["layer_types"].array();
    std::vector<double> pattern;
    if (types != nullptr) {
      for (const Json& type : *types) pattern.push_back(type.string() && *type.string() == "sliding_attention" ? 1 : 0);
    } else if (type_ == "gemma2" || type_ == "gpt_oss" || type_ == "gemma3_text") {
      const int64_t every = type_ == "gemma3_text" ? config_["sliding_window_pattern"].integer().value_or(6) : 2;
      const int64_t layers = config_["num_hidden_layers"].integer().value_or(0);
      for (int64_t layer = 0; layer < std::min<int64_t>(layers, 1024) && every > 0; layer++) pattern.push_back((layer + 1) % every != 0 ? 1 : 0);
    } else if (config_["max_window_layers"].integer()) {
      // The first layers see all.
      const int64_t full = *config_["max_window_layers"].integer(), layers = config_["num_hidden_layers"].integer().value_or(0);
      for (int64_t layer = 0; layer < std::min<int64_t>(layers, 1024); layer++) pattern.push_back(layer >= full ? 1 : 0);
    }
    set("attention.sliding_window", *window);
    if (!pattern.empty()) set("attention.sliding_window_pattern", std::move(pattern));
  }

  // transformers 5 has all of RoPE in rope_parameters, for each kind of layer where they differ; 4 has rope_theta and rope_scaling.
  void read_ropes() {
    const Json& parameters = config_["rope_parameters"];
    if (type_ != "gemma3_text") {
      const Json& scaling = parameters.is_null() ? config_["rope_scaling"] : parameters;
      read_rope(scaling, scaling["rope_theta"].number() ? scaling["rope_theta"] : config_["rope_theta"]);
      return;
    }
    const Json& full = parameters["full_attention"];
    if (!parameters.is_null() && full.is_null()) return fail("has rope_parameters without full_attention");
    read_rope(parameters.is_null() ? config_["rope_scaling"] : full, parameters.is_null() ? config_["rope_theta"] : full["rope_theta"]);
    const Json& local = parameters["sliding_attention"];
    set("rope.freq_base_swa", (parameters.is_null() ? config_["rope_local_base_freq"] : local["rope_theta"]).number().value_or(10000));
    if (const std::string* type = local["rope_type"].string(); type != nullptr && *type != "default")
      fail("scales RoPE by \"" + *type + "\" where it attends within a window, which this engine does not do");
  }

  void read_rope(const Json& scaling, const Json& base) {
    set("rope.freq_base", base.number().value_or(architecture_.rope_base));
    read_turning(scaling);
    const std::string* named = scaling["rope_type"].string() ? scaling["rope_type"].string() : scaling["type"].string();
    const std::string type = named ? *named : "default";
    if (type == "default") return;
    if (type == "longrope" || type == "su") return read_longrope(scaling);
    if (type != "linear" && type != "llama3" && type != "yarn")
      return fail("scales RoPE by \"" + type + "\", which this engine does not do; it does linear, llama3, yarn and longrope");
    set("rope.scaling.type", type);
    if (!scaling["factor"].number()) return fail("scales RoPE by \"" + type + "\" without a factor");
    const std::pair<const char*, const char*> numbers[] = {{"factor", "factor"},
                                                           {"low_freq_factor", "low_freq_factor"},
                                                           {"high_freq_factor", "high_freq_factor"},
                                                           {"beta_fast", "yarn_beta_fast"},
                                                           {"beta_slow", "yarn_beta_slow"},
                                                           {"attention_factor", "yarn_attn_factor"}};
    for (const auto& [from, to] : numbers)
      if (scaling[from].number()) set(std::string("rope.scaling.") + to, *scaling[from].number());
    if (type == "yarn" && (scaling["mscale"].number() || scaling["mscale_all_dim"].number()))
      fail("scales RoPE by YaRN with mscale, which this engine does not do");
    if (scaling["truncate"].boolean()) set("rope.scaling.yarn_truncate", *scaling["truncate"].boolean());
    else if (type == "yarn") set("rope.scaling.yarn_truncate", true);
    if (const auto original = original_context(scaling)) set("rope.scaling.original_context_length", *original);
  }

  std::optional<int64_t> original_context(const Json& scaling) const {
    const auto own = scaling["original_max_position_embeddings"].integer();
    return own ? own : config_["original_max_position_embeddings"].integer();
  }

  // How many of a head's dimensions turn.
  void read_turning(const Json& scaling) {
    const auto factor = scaling["partial_rotary_factor"].number() ? scaling["partial_rotary_factor"].number() : config_["partial_rotary_factor"].number();
    const int64_t heads = config_["num_attention_heads"].integer().value_or(0);
    if (!factor || heads < 1) return;
    const int64_t head_dim = config_["head_dim"].integer().value_or(config_["hidden_size"].integer().value_or(0) / heads);
    set("rope.dimension_count", static_cast<int64_t>(static_cast<double>(head_dim) * *factor));
  }

  void read_longrope(const Json& scaling) {
    set("rope.scaling.type", std::string("longrope"));
    const auto original = original_context(scaling);
    if (!original) return fail("scales RoPE by \"longrope\" without original_max_position_embeddings");
    set("rope.scaling.original_context_length", *original);
    if (scaling["attention_factor"].number()) set("rope.scaling.attn_factor", *scaling["attention_factor"].number());
    for (const char* length : {"long", "short"}) {
      const Json::Array* factors = scaling[std::string(length) + "_factor"].array();
      if (factors == nullptr || factors->empty()) return fail(text("scales RoPE by \"longrope\" without a ", length, "_factor"));
      float* values = reinterpret_cast<float*>(model_.allocate(factors->size() * sizeof(float)));
      for (size_t i = 0; i < factors->size(); i++) values[i] = static_cast<float>((*factors)[i].number().value_or(0));
      FileTensor tensor;
      tensor.name = std::string("rope_factors_") + length + ".weight";
      tensor.shape[0] = static_cast<int64_t>(factors->size());
      tensor.bytes = reinterpret_cast<const uint8_t*>(values);
      model_.add(std::move(tensor));
    }
  }

  const HfArchitecture& architecture_;
  const Json& config_;
  ModelFile& model_;
  const std::string type_;
  std::string error_;
};

}  // namespace

Status set_config(const HfArchitecture& architecture, const Json& config, ModelFile& model) {
  return ConfigReader(architecture, config, model).read();
}

}  // namespace millrace
