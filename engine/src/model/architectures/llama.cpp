// Llama 2 and 3, and everything that shares their blocks (SmolLM, TinyLlama, Mistral with its window, Mixtral with its experts):
// RMSNorm, grouped-query attention with RoPE, SwiGLU, tied or separate output.
#include "../architecture.h"

namespace millrace {
namespace {

void read_llama(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model);
  const bool routed = read.number_or("expert_count", 0) > 0;
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    model.operators.push_back(read.qkv(model, layer, read.rms(block(layer) + "attn_norm", config.hidden), rope));
    model.operators.push_back(Attend{.layer = layer, .window = read.window(layer)});
    model.operators.push_back(read.project(model, layer));
    const Norm norm = read.rms(block(layer) + "ffn_norm", config.hidden);
    if (routed) {
      model.operators.push_back(read.experts(model, layer, norm, Activation::silu));
    } else {
      model.operators.push_back(read.gate_up(model, layer, norm, Activation::silu));
      model.operators.push_back(read.down(model, layer));
    }
  }
  model.operators.push_back(read.logits(model, read.rms("output_norm", config.hidden)));
}

}  // namespace

extern const Architecture llama = {{"llama"}, read_llama};

}  // namespace millrace
