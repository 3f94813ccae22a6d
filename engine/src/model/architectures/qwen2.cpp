// Qwen 2 and 2.5: Llama's blocks with biases on q, k and v.
#include "../architecture.h"

namespace millrace {
namespace {

void read_qwen2(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model, "rope.freq_base", 1000000);
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    model.operators.push_back(read.qkv(model, layer, read.rms(block(layer) + "attn_norm", config.hidden), rope));
    model.operators.push_back(Attend{.layer = layer, .window = read.window(layer)});
    model.operators.push_back(read.project(model, layer));
    model.operators.push_back(read.gate_up(model, layer, read.rms(block(layer) + "ffn_norm", config.hidden), Activation::silu));
    model.operators.push_back(read.down(model, layer));
  }
  model.operators.push_back(read.logits(model, read.rms("output_norm", config.hidden)));
}

}  // namespace

extern const Architecture qwen2 = {{"qwen2"}, read_qwen2};

}  // namespace millrace
