// gpt-oss: biases everywhere, a sink beside each head's scores, windows in turns, RoPE stretched by YaRN, and experts with a clamped
// SwiGLU in MXFP4.
#include "../architecture.h"

namespace millrace {
namespace {

void read_gpt_oss(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model, "rope.freq_base", 150000);
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    const std::string at = block(layer);
    model.operators.push_back(read.qkv(model, layer, read.rms(at + "attn_norm", config.hidden), rope));
    model.operators.push_back(Attend{.layer = layer, .window = read.window(layer, 2), .sinks = read.tensor(at + "attn_sinks.weight", 1, config.heads)});
    model.operators.push_back(read.project(model, layer));
    model.operators.push_back(read.experts(model, layer, read.rms(at + "post_attention_norm", config.hidden), Activation::clamped));
  }
  model.operators.push_back(read.logits(model, read.rms("output_norm", config.hidden)));
}

}  // namespace

extern const Architecture gpt_oss = {{"gpt-oss"}, read_gpt_oss};

}  // namespace millrace
