// A Llama's forward pass in plain double precision, straight from its definition and the file's tensors: no pages, no packing, no
// batches. What the engine's float32 yardstick must agree with.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "format/gguf.h"
#include "model/model.h"

namespace millrace::test {

class PlainLlama {
 public:
  PlainLlama(const ModelFile& file, const ModelConfig& config) : file_(file), config_(config) {}

  // Logits of every position, [tokens][vocabulary].
  std::vector<std::vector<double>> run(const std::vector<int32_t>& tokens) const {
    std::vector<Vector> stream;
    const Matrix embedding = matrix("token_embd.weight");
    for (const int32_t token : tokens) stream.push_back(embedding[static_cast<size_t>(token)]);
    for (int layer = 0; layer < config_.layers; layer++) {
      const std::string block = "blk." + std::to_string(layer) + ".";
      attend(block, stream);
      feed_forward(block, stream);
    }
    const Matrix output = file_.tensor("output.weight") ? matrix("output.weight") : embedding;
    std::vector<Vector> logits;
    for (const Vector& x : stream) logits.push_back(times(output, norm(x, "output_norm.weight")));
    return logits;
  }

 private:
  int rope_dims() const { return static_cast<int>(file_.integer("llama.rope.dimension_count").value_or(config_.head_dim)); }
  using Vector = std::vector<double>;
  using Matrix = std::vector<Vector>;

  Matrix matrix(const std::string& name) const {
    const FileTensor& tensor = *file_.tensor(name);
    Matrix rows;
    std::vector<float> values(static_cast<size_t>(tensor.columns()));
    for (int64_t row = 0; row < tensor.rows(); row++) {
      dequantize(tensor.type, tensor.row(row), tensor.columns(), values.data());
      rows.emplace_back(values.begin(), values.end());
    }
    return rows;
  }

  static Vector times(const Matrix& weight, const Vector& x) {
    Vector y;
    for (const Vector& row : weight) {
      double sum = 0;
      for (size_t i = 0; i < x.size(); i++) sum += row[i] * x[i];
      y.push_back(sum);
    }
    return y;
  }

  Vector norm(const Vector& x, const std::string& name) const {
    const Vector weight = matrix(name)[0];
    double sum = 0;
    for (const double value : x) sum += value * value;
    const double scale = 1 / std::sqrt(sum / static_cast<double>(x.size()) + file_.number("llama.attention.layer_norm_rms_epsilon").value_or(1e-5));
    Vector y;
    for (size_t i = 0; i < x.size(); i++) y.push_back(x[i] * scale * weight[i]);
    return y;
  }

  // Turns each pair (2i, 2i + 1) of each head by position * base^(-2i / dims).
  void turn(Vector& heads, size_t position) const {
    const auto head_dim = static_cast<size_t>(config_.head_dim);
    for (size_t head = 0; head < heads.size(); head += head_dim)
      for (int i = 0; i < rope_dims() / 2; i++) {
        const double angle = static_cast<double>(position) * std::pow(file_.number("llama.rope.freq_base").value_or(10000), -2.0 * i / rope_dims());
        double &even = heads[head + 2 * static_cast<size_t>(i)], &odd = heads[head + 2 * static_cast<size_t>(i) + 1];
        const double turned = even * std::cos(angle) - odd * std::sin(angle);
        odd = even * std::sin(angle) + odd * std::cos(angle);
        even = turned;
      }
  }

  void attend(const std::string& block, std::vector<Vector>& stream) const {
    const Matrix wq = matrix(block + "attn_q.weight"), wk = matrix(block + "attn_k.weight"), wv = matrix(block + "attn_v.weight");
    const Matrix wo = matrix(block + "attn_output.weight");
    const auto head_dim = static_cast<size_t>(config_.head_dim), heads = static_cast<size_t>(config_.heads);
    const size_t group = heads / static_cast<size_t>(config_.kv_heads);
    std::vector<Vector> keys, values;
    for (size_t t = 0; t < stream.size(); t++) {
      const Vector x = norm(stream[t], block + "attn_norm.weight");
      Vector q = times(wq, x);
      keys.push_back(times(wk, x));
      values.push_back(times(wv, x));
      turn(q, t);
      turn(keys[t], t);
      Vector attended(heads * head_dim);
      for (size_t head = 0; head < heads; head++) {
        const size_t own = head * head_dim, shared = head / group * head_dim;
        Vector weights;
        double sum = 0;
        for (size_t past = 0; past <= t; past++) {
          double score = 0;
          for (size_t d = 0; d < head_dim; d++) score += q[own + d] * keys[past][shared + d];
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(head_dim))));
          sum += weights.back();
        }
        for (size_t past = 0; past <= t; past++)
          for (size_t d = 0; d < head_dim; d++) attended[own + d] += weights[past] / sum * values[past][shared + d];
      }
      const Vector projected = times(wo, attended);
      for (size_t i = 0; i < projected.size(); i++) stream[t][i] += projected[i];
    }
  }

  void feed_forward(const std::string& block, std::vector<Vector>& stream) const {
    const Matrix gate = matrix(block + "ffn_gate.weight"), up = matrix(block + "ffn_up.weight"), down = matrix(block + "ffn_down.weight");
    for (Vector& x : stream) {
      const Vector normed = norm(x, block + "ffn_norm.weight"), opened = times(up, normed);
      Vector gated = times(gate, normed);
      for (size_t i = 0; i < gated.size(); i++) gated[i] = gated[i] / (1 + std::exp(-gated[i])) * opened[i];
      const Vector added = times(down, gated);
      for (size_t i = 0; i < x.size(); i++) x[i] += added[i];
    }
  }

  const ModelFile& file_;
  const ModelConfig& config_;
};

}  // namespace millrace::test
