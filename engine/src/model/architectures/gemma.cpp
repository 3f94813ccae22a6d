// Gemma 2 and 3: norms before and after each half of a block, GELU gates, windows in turns, an embedding scaled up. Gemma 2 caps its
// scores and logits; Gemma 3 has norms of q and k instead, and turns faster where it sees a window only. GGUF files have norms' weights
// with their 1 already added.
#include <cmath>

#include "../architecture.h"

namespace millrace {
namespace {

void read_gemma(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const bool third = model.architecture == "gemma3";
  const int full_every = third ? 6 : 2, hidden = config.hidden;
  const int global = read.rope(model, "rope.freq_base", third ? 1000000 : 10000);
  const int local = third ? read.rope(model, "rope.freq_base_swa", 10000, false) : global;
  const float score_cap = read.number_or("attn_logit_softcapping", third ? 0 : 50);
  // The largest models divide by the square root of their width a head instead of a head's dimensions.
  const int largest_layers = third ? 62 : 46;
  const double query_width = config.layers == largest_layers ? static_cast<double>(hidden) / config.heads : config.head_dim;
  const float query_scale = read.number_or("attention.scale", 1 / std::sqrt(query_width));

  Embed embed = read.embed(model);
  embed.scale = std::sqrt(static_cast<float>(hidden));
  model.operators.push_back(embed);
  for (int layer = 0; layer < config.layers; layer++) {
    const std::string at = block(layer);
    const int window = read.window(layer, full_every);
    Qkv qkv = read.qkv(model, layer, read.rms(at + "attn_norm", hidden), window > 0 ? local : global);
    qkv.query_scale = query_scale;
    if (third) qkv.q_norm = read.rms(at + "attn_q_norm", config.head_dim);
    if (third) qkv.k_norm = read.rms(at + "attn_k_norm", config.head_dim);
    Project project = read.project(model, layer);
    project.post_norm = read.rms(at + "post_attention_norm", hidden);
    Down down = read.down(model, layer);
    down.post_norm = read.rms(at + "post_ffw_norm", hidden);
    model.operators.push_back(qkv);
    model.operators.push_back(Attend{.layer = layer, .window = window, .soft_cap = score_cap});
    model.operators.push_back(project);
    model.operators.push_back(read.gate_up(model, layer, read.rms(at + "ffn_norm", hidden), Activation::gelu_tanh));
    model.operators.push_back(down);
  }
  Logits logits = read.logits(model, read.rms("output_norm", hidden));
  logits.soft_cap = read.number_or("final_logit_softcapping", third ? 0 : 30);
  model.operators.push_back(logits);
}

}  // namespace

extern const Architecture gemma = {{"gemma2", "gemma3"}, read_gemma};

}  // namespace millrace
