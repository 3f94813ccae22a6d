// Phi 3, 3.5 and 4: Llama's blocks with q, k and v in one matrix, gate and up in another, and RoPE stretched by longrope.
#include "../architecture.h"

namespace millrace {
namespace {

void read_phi3(ModelReader& read, Model& model) {
  const ModelConfig& config = model.config;
  const int rope = read.rope(model), hidden = config.hidden;
  const int64_t ffn = read.count("feed_forward_length", 1 << 19);
  if (ffn % 16 != 0) return read.fail(text("has feed-forward layers of ", ffn, " values; multiples of 16 are run"));
  model.operators.push_back(read.embed(model));
  for (int layer = 0; layer < config.layers; layer++) {
    const std::string at = block(layer);
    model.operators.push_back(read.qkv(model, layer, read.rms(at + "attn_norm", hidden), rope));
    model.operators.push_back(Attend{.layer = layer, .window = read.window(layer)});
    model.operators.push_back(read.project(model, layer));
    const FileTensor* both = read.tensor(at + "ffn_up.weight", 2 * ffn, hidden);
    if (!read.ok()) return;
    model.operators.push_back(GateUp{read.rms(at + "ffn_norm", hidden), {ModelReader::slice(model, both, 0, ffn)},
                                     {ModelReader::slice(model, both, ffn, ffn)}, Activation::silu});
    model.operators.push_back(read.down(model, layer));
  }
  model.operators.push_back(read.logits(model, read.rms("output_norm", hidden)));
}

}  // namespace

extern const Architecture phi3 = {{"phi3"}, read_phi3};

}  // namespace millrace
