// Qwen 3, dense and with routed experts: Llama's blocks with a norm of each head of q and k.
#include "../architecture.h"

namespace millrace {
namespace {

void read_qwen3(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model, "rope.freq_base", 1000000);
  const bool routed = model.architecture == "qwen3moe";
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    Qkv qkv = read.qkv(model, layer, read.rms(block(layer) + "attn_norm", config.hidden), rope);
    qkv.q_norm = read.rms(block(layer) + "attn_q_norm", config.head_dim);
    qkv.k_norm = read.rms(block(layer) + "attn_k_norm", config.head_dim);
    model.operators.push_back(qkv);
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

extern const Architecture qwen3 = {{"qwen3", "qwen3moe"}, read_qwen3};

}  // namespace millrace
