// Falcon 7B, 40B and 180B, and their kin: attention and feed-forward read the same x, side by side; LayerNorm, one KV head or few,
// GELU without a gate. The larger ones have a norm for each side. (Falcon RW, with ALiBi, is refused by its key.)
#include "../architecture.h"

namespace millrace {
namespace {

void read_falcon(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model), hidden = config.hidden;
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    const std::string at = block(layer);
    const Norm first = read.layer_norm(at + "attn_norm", hidden);
    const Norm attention = read.has(at + "attn_norm_2.weight") ? read.layer_norm(at + "attn_norm_2", hidden) : first;
    const Down down = read.down(model, layer);
    const int64_t ffn = down.down.weight != nullptr ? down.down.weight->columns() : 0;
    model.operators.push_back(read.qkv(model, layer, attention, rope));
    model.operators.push_back(Attend{.layer = layer});
    model.operators.push_back(GateUp{first, {}, read.linear(at + "ffn_up", ffn, hidden), Activation::gelu_erf});
    model.operators.push_back(read.project(model, layer));
    model.operators.push_back(down);
  }
  model.operators.push_back(read.logits(model, read.layer_norm("output_norm", hidden)));
}

}  // namespace

extern const Architecture falcon = {{"falcon"}, read_falcon};

}  // namespace millrace
