#include "reader.h"

#include <array>
#include <cmath>

namespace millrace {
namespace {

// Keys that say something is computed otherwise. A file that has one which its architecture does not ask for is refused.
constexpr std::array telling_keys = {
    "attention.sliding_window", "attention.max_alibi_bias", "attention.clamp_kqv", "attention.q_lora_rank", "attention.kv_lora_rank",
    "attention.scale", "attention.output_scale", "attention.temperature_scale", "attention.key_length_swa", "attention.shared_kv_layers",
    "attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping", "logit_scale", "residual_scale", "embedding_scale",
    "expert_count", "expert_shared_count", "expert_group_count", "expert_weights_scale", "leading_dense_block_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.dimension_sections", "nextn_predict_layers", "swin_norm"};

}  // namespace

Model ModelReader::begin() {
  Model model;
  model.architecture = prefix_;
  model.name = file_.string("general.name").value_or("unnamed");
  if (file_.string("general.type").value_or("model") == "adapter" || file_.string("adapter.type"))
    fail("is a LoRA adapter, which this engine does not apply; merge it into its model first");
  ModelConfig& config = model.config;
  config.layers = count("block_count", 1024);
  config.hidden = count("embedding_length", 1 << 17);
  config.heads = count("attention.head_count", 1024);
  config.kv_heads = count_or("attention.head_count_kv", config.heads, 1024);
  config.head_dim = count_or("attention.key_length", config.hidden / config.heads, 512);
  config.context = count("context_length", 1 << 24);
  config.vocabulary = static_cast<int>(file_.strings("tokenizer.ggml.tokens").size());
  if (ok()) check_numbers(config);
  for (const FileTensor& tensor : file_.tensors()) model.parameters += static_cast<uint64_t>(tensor.rows() * tensor.columns());
  return model;
}

void ModelReader::check_numbers(const ModelConfig& config) {
  if (config.hidden % 16 != 0) fail(text("has an embedding of ", config.hidden, " values; multiples of 16 are run"));
  if (config.heads % config.kv_heads != 0) fail(text("has ", config.heads, " heads over ", config.kv_heads, " KV heads"));
  if (config.head_dim < 16 || config.head_dim % 16 != 0) fail(text("has heads of ", config.head_dim, " dimensions; multiples of 16 are run"));
  if (const int values = count_or("attention.value_length", config.head_dim, 1 << 16); values != config.head_dim)
    fail(text("has keys of ", config.head_dim, " dimensions and values of ", values, "; equal ones are run"));
}

const FileTensor* ModelReader::tensor(const std::string& name, int64_t rows, int64_t columns) {
  const FileTensor* found = file_.tensor(name);
  if (found == nullptr) return fail("lacks the tensor " + name), nullptr;
  used_tensors_.insert(name);
  if (found->rows() != rows || found->columns() != columns)
    fail(text("has tensor ", name, " of ", found->rows(), " x ", found->columns(), " where its metadata call for ", rows, " x ", columns));
  return found;
}

Linear ModelReader::linear(const std::string& name, int64_t rows, int64_t columns) {
  return {tensor(name + ".weight", rows, columns), has(name + ".bias") ? tensor(name + ".bias", 1, rows) : nullptr};
}

Norm ModelReader::rms(const std::string& name, int n) {
  return {tensor(name + ".weight", 1, n), nullptr, Norm::Kind::rms, number_or("attention.layer_norm_rms_epsilon", 1e-5)};
}

Norm ModelReader::layer_norm(const std::string& name, int n) {
  return {tensor(name + ".weight", 1, n), tensor(name + ".bias", 1, n), Norm::Kind::layer, number_or("attention.layer_norm_epsilon", 1e-5)};
}

int ModelReader::window(int layer, int full_every) {
  const std::string pattern_key = "attention.sliding_window_pattern";
  const int64_t size = file_.integer(full("attention.sliding_window")).value_or(0);
  if (size < 0 || size > 1 << 24) fail(text("attends within a window of ", size, " positions"));
  const std::vector<double>& pattern = file_.numbers(full(pattern_key));
  if (!pattern.empty()) return layer < static_cast<int>(pattern.size()) && pattern[static_cast<size_t>(layer)] != 0 ? static_cast<int>(size) : 0;
  const int every = count_or(pattern_key, full_every > 0 ? full_every : 1 << 20, 1 << 20);
  return (layer + 1) % every != 0 ? static_cast<int>(size) : 0;
}

Embed ModelReader::embed(const Model& model) { return {tensor("token_embd.weight", model.config.vocabulary, model.config.hidden)}; }

Qkv ModelReader::qkv(const Model& model, int layer, const Norm& norm, int rope) {
  const ModelConfig& config = model.config;
  const int64_t q_rows = int64_t{config.heads} * config.head_dim, kv_rows = int64_t{config.kv_heads} * config.head_dim;
  const std::string at = block(layer);
  Qkv op{.layer = layer, .norm = norm, .rope = rope, .query_scale = 1 / std::sqrt(static_cast<float>(config.head_dim))};
  if (has(at + "attn_qkv.weight"))
    op.parts = {linear(at + "attn_qkv", q_rows + 2 * kv_rows, config.hidden)};
  else
    op.parts = {linear(at + "attn_q", q_rows, config.hidden), linear(at + "attn_k", kv_rows, config.hidden), linear(at + "attn_v", kv_rows, config.hidden)};
  return op;
}

Project ModelReader::project(const Model& model, int layer) {
  return {linear(block(layer) + "attn_output", model.config.hidden, int64_t{model.config.heads} * model.config.head_dim), {}};
}

int ModelReader::ffn(const std::string& key) {
  const int rows = count(key, 1 << 19);
  if (rows % 16 != 0) fail(text("has feed-forward layers of ", rows, " values; multiples of 16 are run"));
  return rows;
}

GateUp ModelReader::gate_up(const Model& model, int layer, const Norm& norm, Activation activation) {
  const int rows = ffn("feed_forward_length");
  const std::string at = block(layer);
  return {norm, linear(at + "ffn_gate", rows, model.config.hidden), linear(at + "ffn_up", rows, model.config.hidden), activation};
}

Down ModelReader::down(const Model& model, int layer) {
  return {linear(block(layer) + "ffn_down", model.config.hidden, ffn("feed_forward_length")), {}};
}

Experts ModelReader::experts(Model& model, int layer, const Norm& norm, Activation activation) {
  const int64_t experts = count("expert_count", 1 << 12), hidden = model.config.hidden;
  const int64_t rows = ffn(file_.integer(full("expert_feed_forward_length")) ? "expert_feed_forward_length" : "feed_forward_length");
  const std::string at = block(layer);
  Experts op{.norm = norm, .router = linear(at + "ffn_gate_inp", experts, hidden), .activation = activation};
  op.used = count("expert_used_count", experts);
  op.normalized = flag_or("expert_weights_norm", true);
  const auto part = [&](const std::string& name, int64_t outputs, int64_t inputs) {
    const Linear all = {tensor(name + ".weight", experts * outputs, inputs), has(name + ".bias") ? tensor(name + ".bias", experts, outputs) : nullptr};
    return [&model, all, outputs](int64_t e) { return Linear{slice(model, all.weight, e * outputs, outputs), slice(model, all.bias, e, 1)}; };
  };
  const auto gate = part(at + "ffn_gate_exps", rows, hidden), up = part(at + "ffn_up_exps", rows, hidden), down = part(at + "ffn_down_exps", hidden, rows);
  for (int64_t e = 0; ok() && e < experts; e++) op.experts.push_back({gate(e), up(e), down(e)});
  return op;
}

Logits ModelReader::logits(const Model& model, const Norm& norm) {
  const char* name = has("output.weight") ? "output" : "token_embd";
  return {norm, linear(name, model.config.vocabulary, model.config.hidden), 0};
}

const FileTensor* ModelReader::slice(Model& model, const FileTensor* tensor, int64_t first, int64_t count) {
  if (tensor == nullptr) return nullptr;
  FileTensor& rows = model.slices.emplace_back(*tensor);
  rows.shape = {tensor->columns(), count, 1, 1};
  if (tensor->bytes != nullptr) rows.bytes = tensor->bytes + first * tensor->row_bytes();
  if (!tensor->places.empty()) rows.places.assign(tensor->places.begin() + first, tensor->places.begin() + first + count);
  if (tensor->derive) rows.derive = [derive = tensor->derive, first](int64_t row, float* values) { derive(first + row, values); };
  if (tensor->e4m3) rows.e4m3 = [e4m3 = tensor->e4m3, first](int64_t row) { return e4m3(first + row); };
  return &rows;
}

Status ModelReader::finish() {
  for (const FileTensor& tensor : file_.tensors())
    if (!used_tensors_.contains(tensor.name)) fail("has the tensor " + tensor.name + ", which this architecture does not use here");
  for (const char* key : telling_keys) {
    const std::string name = prefix_ + "." + key;
    const bool tells = file_.number(name).value_or(0) != 0 || file_.boolean(name).value_or(false) || file_.string(name) || !file_.numbers(name).empty();
    if (tells && !used_keys_.contains(name)) fail("has the key " + name + ", which this architecture does not use here");
  }
  return ok() ? Status() : Status::error(file_.path() + " " + error_);
}

std::string ModelReader::full(const std::string& key) {
  const std::string name = prefix_ + "." + key;
  used_keys_.insert(name);
  return name;
}

int ModelReader::checked(const std::string& key, const std::optional<int64_t>& value, int64_t max) {
  if (!value || *value < 1 || *value > max) {
    fail(text("gives ", prefix_, ".", key, " as ", value ? text(*value) : "nothing", ", not 1 to ", max));
    return 1;
  }
  return static_cast<int>(*value);
}

}  // namespace millrace
