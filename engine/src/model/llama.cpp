// Llama 2 and 3, and everything that shares their blocks (SmolLM, TinyLlama, Mistral without a window): RMSNorm, grouped-query
// attention with RoPE, SwiGLU, tied or separate output.
#include "model.h"
#include "reader.h"

namespace millrace {

Result<Model> read_llama(const ModelFile& file) {
  ModelReader read(file, "llama");
  Model model;
  model.architecture = "llama";
  model.name = file.string("general.name").value_or("unnamed");
  ModelConfig& config = model.config;
  config.layers = read.count("block_count", 1024);
  config.hidden = read.count("embedding_length", 1 << 17);
  config.ffn = read.count("feed_forward_length", 1 << 19);
  config.heads = read.count("attention.head_count", 1024);
  config.kv_heads = read.count_or("attention.head_count_kv", config.heads, 1024);
  config.head_dim = read.count_or("attention.key_length", config.hidden / config.heads, 512);
  config.context = read.count("context_length", 1 << 24);
  config.vocabulary = static_cast<int>(file.strings("tokenizer.ggml.tokens").size());
  config.norm_epsilon = read.number_or("attention.layer_norm_rms_epsilon", 1e-5);
  config.rope_base = read.number_or("rope.freq_base", 10000);
  config.rope_dims = read.count_or("rope.dimension_count", config.head_dim, config.head_dim);

  if (config.hidden % 16 != 0) read.fail(text("has an embedding of ", config.hidden, " values; multiples of 16 are run"));
  if (config.heads % config.kv_heads != 0) read.fail(text("has ", config.heads, " heads over ", config.kv_heads, " KV heads"));
  if (config.hidden % 16 != 0) read.fail(text("has a hidden size of ", config.hidden, "; multiples of 16 are run"));
  if (config.head_dim % 16 != 0 || config.rope_dims % 2 != 0)
    read.fail(text("has heads of ", config.head_dim, " dimensions, ", config.rope_dims, " of them turning; multiples of 16 and 2 are run"));
  if (file.integer("llama.expert_count").value_or(0) > 0) read.fail("is a mixture of experts, which this engine does not run");
  const std::string scaling = file.string("llama.rope.scaling.type").value_or("none");
  if (scaling != "none") read.fail("scales RoPE by \"" + scaling + "\", which this engine does not do");
  if (file.integer("llama.attention.sliding_window")) read.fail("attends within a sliding window, which this engine does not do");
  if (!read.ok()) return read.finish();

  const int64_t hidden = config.hidden, q_rows = int64_t{config.heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.kv_heads} * config.head_dim;
  if (read.has("rope_freqs.weight")) {
    const FileTensor* factors = read.tensor("rope_freqs.weight", 1, config.rope_dims / 2);
    if (!read.ok()) return read.finish();
    config.rope_factors.resize(config.rope_dims / 2);
    read_row(*factors, 0, config.rope_factors.data());
  }

  const FileTensor* embedding = read.tensor("token_embd.weight", config.vocabulary, hidden);
  model.operators.push_back(Embed{embedding});
  for (int layer = 0; layer < config.layers; layer++) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    model.operators.push_back(Qkv{layer, read.tensor(block + "attn_norm.weight", 1, hidden), read.tensor(block + "attn_q.weight", q_rows, hidden),
                                  read.tensor(block + "attn_k.weight", kv_rows, hidden), read.tensor(block + "attn_v.weight", kv_rows, hidden)});
    model.operators.push_back(Attend{layer});
    model.operators.push_back(Project{read.tensor(block + "attn_output.weight", hidden, q_rows)});
    model.operators.push_back(GateUp{read.tensor(block + "ffn_norm.weight", 1, hidden), read.tensor(block + "ffn_gate.weight", config.ffn, hidden),
                                     read.tensor(block + "ffn_up.weight", config.ffn, hidden)});
    model.operators.push_back(Down{read.tensor(block + "ffn_down.weight", hidden, config.ffn)});
  }
  const bool tied = !read.has("output.weight");
  const FileTensor* output = tied ? embedding : read.tensor("output.weight", config.vocabulary, hidden);
  model.operators.push_back(Logits{read.tensor("output_norm.weight", 1, hidden), output});

  for (const FileTensor& tensor : file.tensors()) model.parameters += static_cast<uint64_t>(tensor.rows() * tensor.columns());
  if (Status status = read.finish(); !status.ok()) return status;
  return model;
}

}  // namespace millrace
