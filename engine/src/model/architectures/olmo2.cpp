// OLMo 2: no norm before the halves of a block but one after each, and norms of q and k over all heads at once.
#include "../architecture.h"

namespace millrace {
namespace {

void read_olmo2(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model, "rope.freq_base", 500000);
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    const std::string at = block(layer);
    Qkv qkv = read.qkv(model, layer, Norm{}, rope);
    qkv.q_norm = read.rms(at + "attn_q_norm", config.heads * config.head_dim);
    qkv.k_norm = read.rms(at + "attn_k_norm", config.kv_heads * config.head_dim);
    Project project = read.project(model, layer);
    project.post_norm = read.rms(at + "post_attention_norm", config.hidden);
    Down down = read.down(model, layer);
    down.post_norm = read.rms(at + "post_ffw_norm", config.hidden);
    model.operators.push_back(qkv);
    model.operators.push_back(Attend{.layer = layer, .window = read.window(layer)});
    model.operators.push_back(project);
    model.operators.push_back(read.gate_up(model, layer, Norm{}, Activation::silu));
    model.operators.push_back(down);
  }
  model.operators.push_back(read.logits(model, read.rms("output_norm", config.hidden)));
}

}  // namespace

extern const Architecture olmo2 = {{"olmo2"}, read_olmo2};

}  // namespace millrace
